"""What compiled code of every kernel needs: Numba, a cache folder, threads, fresh memory."""

from .load import load as load
from .load import why_not_compiled as why_not_compiled
from .memory import empty as empty
from .threads import run_tasks as run_tasks

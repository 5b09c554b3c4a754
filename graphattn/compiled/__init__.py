"""What compiled code of every kernel needs: Numba, a cache folder, threads, fresh memory."""

from .folders import compiled_files as compiled_files
from .folders import remove_compiled as remove_compiled
from .load import NotCompiled as NotCompiled
from .load import compiled_loop as compiled_loop
from .load import load as load
from .load import load_source as load_source
from .load import settle as settle
from .load import why_not_compiled as why_not_compiled
from .memory import empty as empty
from .memory import empty_like as empty_like
from .memory import scratch as scratch
from .threads import run_tasks as run_tasks

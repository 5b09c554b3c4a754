"""The kernels, fastest first. Ties of the cost model go to the earlier one."""

from ..call import Call as Call
from .base import Kernel as Kernel
from .base import Result as Result
from .flex import Flex as Flex
from .linear import Linear as Linear
from .rows.cpu.kernel import NumbaCSR as NumbaCSR
from .rows.gpu.kernel import TritonCSR as TritonCSR
from .scatter import Scatter as Scatter
from .tiles.kernel import Tiles as Tiles

KERNELS: tuple[Kernel, ...] = (Tiles(), Flex(), NumbaCSR(), TritonCSR(), Linear(), Scatter())

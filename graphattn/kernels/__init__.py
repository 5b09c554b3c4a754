"""The kernels, fastest first. Ties of the cost model go to the earlier one."""

from ..call import Call as Call
from .base import Kernel as Kernel
from .base import Result as Result
from .flex import Flex as Flex
from .numba_csr import NumbaCSR as NumbaCSR
from .scatter import Scatter as Scatter
from .tiles import Tiles as Tiles
from .triton_csr import TritonCSR as TritonCSR

KERNELS: tuple[Kernel, ...] = (Tiles(), Flex(), NumbaCSR(), TritonCSR(), Scatter())

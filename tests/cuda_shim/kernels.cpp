// A .cu of csrc/ as C++: the one that KERNELS names.
#include KERNELS

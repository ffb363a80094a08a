#define ISA zoo_portable
#define LANES 4
#include "block_sparse_isa.hpp"

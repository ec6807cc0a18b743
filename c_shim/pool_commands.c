#include "pool_shim.h"

const command_rec pool_shim_commands[] = {
    { NULL }
};

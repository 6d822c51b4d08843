#include <zephyr/kernel.h>

int run_program(void) { return zephyr_main(); }

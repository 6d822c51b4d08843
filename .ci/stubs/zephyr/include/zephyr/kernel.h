/* As much of Zephyr as an exported sample needs, on bare_metal.h. */
#pragma once

#include <stdint.h>

#include "bare_metal.h"

static inline uint32_t k_cycle_get_32(void) { return (uint32_t)clock_ticks(); }
static inline uint64_t k_cyc_to_us_floor32(uint32_t cycles) { return cycles / 25; }

#define main zephyr_main
int zephyr_main(void);

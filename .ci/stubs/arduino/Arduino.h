// As much of Arduino as an exported example needs, on bare_metal.h: text goes to the debugger's screen.
#pragma once

#include <stddef.h>
#include <stdint.h>

extern "C" {
#include "bare_metal.h"
}

struct Screen {
  void begin(unsigned long) {}
  void print(const char *text) { ::print(text); }
  void print(unsigned long number) { ::print_number(number); }
  void println(const char *text) {
    ::print(text);
    ::print("\n");
  }
};

static Screen Serial;

// The emulated boards have 25 MHz.
static inline unsigned long micros() { return (unsigned long)(clock_ticks() / 25); }
static inline void delay(unsigned long) {}

void setup();
void loop();

extern "C" int run_program(void) {
  setup();
  loop();
  return 0;
}

/* Text with %s and %u on the debugger's screen. */
#pragma once

#include <stdarg.h>

#include "bare_metal.h"

static inline void printk(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  for (; *format; format++) {
    const char text[2] = {*format, 0};
    if (*format != '%') {
      print(text);
    } else if (*++format == 's') {
      print(va_arg(arguments, const char *));
    } else {
      print_number(va_arg(arguments, unsigned int));
    }
  }
  va_end(arguments);
}

/* What the program needs of the C library: WebAssembly comes without one. */
#ifndef FTBNN_STRING_H
#define FTBNN_STRING_H

#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);

#endif

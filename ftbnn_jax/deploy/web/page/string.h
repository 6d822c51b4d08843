/* What the program needs of the C library: WebAssembly comes without one. */
#ifndef FTBNN_STRING_H
#define FTBNN_STRING_H

#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);

/* A copy of a few bytes is no call, which a compiler that knows of no library cannot tell by itself. */
#ifndef FTBNN_MEMORY
#define memcpy(to, from, bytes) __builtin_memcpy(to, from, bytes)
#define memset(to, value, bytes) __builtin_memset(to, value, bytes)
#endif

#endif

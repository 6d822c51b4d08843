/* Copies for WebAssembly without its own instruction for them. Compiled with -fno-builtin, so that no loop
 * here becomes a call of the function that it is. */
#define FTBNN_MEMORY /* the functions themselves */
#include <stdint.h>
#include <string.h>

/* Words are copied where both places allow it. */
static int are_aligned(const void *a, const void *b) { return !(((uintptr_t)a | (uintptr_t)b) % sizeof(uint32_t)); }

typedef uint32_t __attribute__((may_alias)) word;

void *memcpy(void *restrict to, const void *restrict from, size_t bytes) { return memmove(to, from, bytes); }

void *memmove(void *to, const void *from, size_t bytes) {
  unsigned char *out = to;
  const unsigned char *in = from;
  const size_t whole = are_aligned(to, from) ? bytes / sizeof(word) : 0;
  word *words = to;
  const word *source = from;
  if ((uintptr_t)out <= (uintptr_t)in) {
    for (size_t i = 0; i < whole; i++) words[i] = source[i];
    for (size_t i = whole * sizeof(word); i < bytes; i++) out[i] = in[i];
  } else {
    for (size_t i = bytes; i > whole * sizeof(word); i--) out[i - 1] = in[i - 1];
    for (size_t i = whole; i > 0; i--) words[i - 1] = source[i - 1];
  }
  return to;
}

void *memset(void *to, int value, size_t bytes) {
  unsigned char *out = to;
  for (size_t i = 0; i < bytes; i++) out[i] = (unsigned char)value;
  return to;
}

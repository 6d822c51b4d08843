/* Everything that a Cortex-M needs beside a program of its own: where it starts, the three functions that
 * compilers call by themselves, a clock, and text on the debugger's screen (semihosting). No C library.
 */
#include "bare_metal.h"

#define REGISTER(address) (*(volatile uint32_t *)(uintptr_t)(address))
#define SYSTICK_CONTROL REGISTER(0xe000e010)
#define SYSTICK_RELOAD REGISTER(0xe000e014)
#define SYSTICK_VALUE REGISTER(0xe000e018)
#define INTERRUPTS REGISTER(0xe000ed04)
#define CONFIGURATION REGISTER(0xe000ed14)
#define COPROCESSORS REGISTER(0xe000ed88)

enum { SYSTICK_MOST = 0xffffff, SYSTICK_PENDING = 1 << 26 };
enum { WRITE = 4, EXIT_WITH_STATUS = 0x20, EXITED = 0x20026 };

extern uint32_t data_in_flash[], data_begin[], data_end[], bss_begin[], bss_end[], stack_top[];

static volatile uint32_t wraps;

static uint32_t call_debugger(uint32_t operation, const void *argument) {
  register uint32_t r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

void print(const char *text) { call_debugger(WRITE, text); }

void print_number(uint64_t number) {
  /* Without a division: tens are taken away, the highest power first. */
  static const uint32_t powers[] = {1000000000u, 100000000u, 10000000u, 1000000u, 100000u,
                                    10000u,      1000u,      100u,      10u,      1u};
  char text[32], *out = text;
  uint32_t above = 0;
  while (number >= 1000000000u) {
    number -= 1000000000u;
    above++;
  }
  if (above) print_number(above);
  uint32_t left = (uint32_t)number;
  for (int i = above ? 1 : 0; i < 10; i++) {
    int digit = 0;
    for (; left >= powers[i]; left -= powers[i]) digit++;
    if (digit || out != text || above || i == 9) *out++ = (char)('0' + digit);
  }
  *out = 0;
  print(text);
}

void quit(int status) {
  const uint32_t block[2] = {EXITED, (uint32_t)status};
  call_debugger(EXIT_WITH_STATUS, block);
  for (;;) continue;
}

static void fail(void) {
  print("error: the processor met a fault: memory that is not there, or an address that is not aligned\n");
  quit(2);
}

static void count_wrap(void) { wraps++; }

uint64_t clock_ticks(void) {
  uint32_t high, low;
  do {
    high = wraps;
    low = (SYSTICK_MOST + 1 - SYSTICK_VALUE) & SYSTICK_MOST; /* it counts down, and begins at 0 */
  } while (high != wraps || INTERRUPTS & SYSTICK_PENDING);
  return ((uint64_t)high << 24) + low;
}

static void reset(void) {
  for (uint32_t *to = data_begin, *from = data_in_flash; to < data_end;) *to++ = *from++;
  for (uint32_t *to = bss_begin; to < bss_end;) *to++ = 0;
#ifdef __ARM_FP
  COPROCESSORS |= 0xfu << 20; /* the floating point unit, which is off at first */
  __asm__ volatile("dsb\n isb");
#endif
#ifdef TRAP_UNALIGNED
  CONFIGURATION |= 1u << 3; /* a Cortex-M0 always does */
#endif
  SYSTICK_RELOAD = SYSTICK_MOST;
  SYSTICK_VALUE = 0;
  SYSTICK_CONTROL = 7; /* the processor's clock, an interrupt at 0, on */
  quit(run_program());
}

typedef union {
  void (*function)(void);
  uint32_t *address;
} vector;

extern const vector vectors[16];
__attribute__((section(".vectors"), used)) const vector vectors[16] = {
    {.address = stack_top}, {reset}, {fail}, {fail}, {fail}, {fail}, {fail}, {fail},
    {fail}, {fail}, {fail}, {fail}, {fail}, {fail}, {fail}, {count_wrap}};

/* The stack below this function's frame holds a pattern that what runs later overwrites. */
enum { PAINTED_WORDS = 4096 };
#define PATTERN 0xa5c35a3cu

static uint32_t *painted_from(uint32_t *top) {
  return (uintptr_t)top - (uintptr_t)bss_end > 4 * (PAINTED_WORDS + 16) ? top - PAINTED_WORDS : bss_end;
}

__attribute__((noinline)) void paint_stack(void) {
  uint32_t *top = (uint32_t *)__builtin_frame_address(0) - 16;
  for (volatile uint32_t *word = painted_from(top); word < top; word++) *word = PATTERN;
}

__attribute__((noinline)) uint32_t stack_used(void) {
  uint32_t *top = (uint32_t *)__builtin_frame_address(0) - 16;
  volatile uint32_t *word = painted_from(top);
  while (word < top && *word == PATTERN) word++;
  return (uint32_t)((uintptr_t)top + 64 - (uintptr_t)word);
}

void *memcpy(void *restrict to, const void *restrict from, size_t bytes) {
  unsigned char *out = to;
  const unsigned char *in = from;
  if (!(((uintptr_t)to | (uintptr_t)from) & 3)) {
    for (; bytes >= 4; bytes -= 4, out += 4, in += 4) *(uint32_t *)(void *)out = *(const uint32_t *)(const void *)in;
  }
  while (bytes--) *out++ = *in++;
  return to;
}

void *memmove(void *to, const void *from, size_t bytes) {
  unsigned char *out = to;
  const unsigned char *in = from;
  if ((uintptr_t)to <= (uintptr_t)from) return memcpy(to, from, bytes);
  while (bytes--) out[bytes] = in[bytes];
  return to;
}

void *memset(void *to, int value, size_t bytes) {
  unsigned char *out = to;
  const uint32_t word = (value & 255) * 0x01010101u;
  if (!((uintptr_t)to & 3)) {
    for (; bytes >= 4; bytes -= 4, out += 4) *(uint32_t *)(void *)out = word;
  }
  while (bytes--) *out++ = (unsigned char)value;
  return to;
}

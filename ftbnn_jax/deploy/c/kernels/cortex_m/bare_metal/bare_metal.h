/* What a program without a C library has on a Cortex-M under QEMU, or with a debugger that offers semihosting. */
#ifndef BARE_METAL_H
#define BARE_METAL_H

#include <stddef.h>
#include <stdint.h>

/* The program; its result becomes the exit status. */
int run_program(void);

/* Ticks of the processor's clock since the start. */
uint64_t clock_ticks(void);

void print(const char *text);
void print_number(uint64_t number);
void quit(int status);

/* How many bytes of stack functions took that were called since `paint_stack`, at most 16 KB. */
void paint_stack(void);
uint32_t stack_used(void);

#endif

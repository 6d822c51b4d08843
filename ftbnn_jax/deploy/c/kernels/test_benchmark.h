/* How long a network takes, for test_model: --profile and --benchmark, with --json for other programs.
 *
 * Every time is the least of many, since whatever else runs on a machine makes some of them longer.
 */
#ifndef FTBNN_TEST_BENCHMARK_H
#define FTBNN_TEST_BENCHMARK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ftbnn_layers.h"
#include "model.h"

enum { FTBNN_MOST_ROUNDS = 1000, FTBNN_LEAST_ROUNDS = 3 };

/* Nanoseconds since some moment. */
static uint64_t nanoseconds(void) {
#ifdef CLOCK_MONOTONIC
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
#else
  return (uint64_t)((double)clock() * (1e9 / CLOCKS_PER_SEC));
#endif
}

/* Nanoseconds that this process has had a processor for. Asking takes longer than asking for the time. */
static uint64_t processor_nanoseconds(void) { return (uint64_t)((double)clock() * (1e9 / CLOCKS_PER_SEC)); }

/* All in nanoseconds: of the quickest prediction, of one half of them at most, and of each loop in whichever
 * prediction it was quickest. */
typedef struct {
  int rounds;
  uint64_t least, median;
#ifdef FTBNN_PROFILE
  uint64_t loops[FTBNN_LOOPS];
#endif
} ftbnn_times;

#ifdef FTBNN_PROFILE
uint64_t ftbnn_clock(void) { return nanoseconds(); }
#endif

static int by_size(const void *a, const void *b) {
  const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return x < y ? -1 : x > y;
}

/* Predicts for a second; three times at least. Returns 0 if a prediction fails. */
static int time_predictions(ftbnn_net *net, const ftbnn_pixel *pixels, ftbnn_value *logits, ftbnn_times *times) {
  static uint64_t found[FTBNN_MOST_ROUNDS];
  const uint64_t begun = nanoseconds();
  memset(times, 0, sizeof *times);
  while (times->rounds < FTBNN_MOST_ROUNDS &&
         (times->rounds < FTBNN_LEAST_ROUNDS || nanoseconds() - begun < 1000000000u)) {
#ifdef FTBNN_PROFILE
    memset(ftbnn_ticks, 0, sizeof ftbnn_ticks);
#endif
    const uint64_t before = nanoseconds(), processor = processor_nanoseconds();
    if (ftbnn_predict(net, pixels, FTBNN_PIXEL_BYTES, logits, FTBNN_CLASSES) < 0) return 0;
    const uint64_t busy = processor_nanoseconds() - processor, took = nanoseconds() - before;
    /* Other programs may have run in between; a short prediction is short beside the processor's clock. */
    found[times->rounds] = busy > 1000000u && busy < took ? busy : took;
#ifdef FTBNN_PROFILE
    for (int i = 0; i < FTBNN_LOOPS; i++) {
      if (!times->rounds || ftbnn_ticks[i] < times->loops[i]) times->loops[i] = ftbnn_ticks[i];
    }
#endif
    times->rounds++;
  }
  qsort(found, (size_t)times->rounds, sizeof *found, by_size);
  times->least = found[0];
  times->median = found[times->rounds / 2];
  return 1;
}

/* Prints a JSON string of UTF-8. */
static void print_string(const char *text) {
  putchar('"');
  for (; *text; text++) {
    const unsigned char c = (unsigned char)*text;
    if (c < 32 || c == '"' || c == '\\' || c == 127)
      printf("\\u%04x", c);
    else
      putchar(c);
  }
  putchar('"');
}

static void print_number(const char *name, uint64_t number) { printf(", \"%s\": %.0f", name, (double)number); }

#ifdef FTBNN_PROFILE

static double per_nanosecond(uint64_t count, uint64_t took) { return took ? (double)count / (double)took : 0; }

/* A line for each loop, and the rest of the quickest prediction: what the clock takes, and what disturbed it. */
static void print_profile(const ftbnn_times *times) {
  uint64_t products = 0, inside = 0;
  const double whole = times->least ? (double)times->least : 1;
  printf("%-28s %-36s %9s %6s %15s %7s\n", "layer", "what", "ms", "share", "multiply-adds", "per ns");
  for (int i = 0; i < FTBNN_LOOPS; i++) {
    const ftbnn_loop *loop = &ftbnn_loops[i];
    const uint64_t took = times->loops[i], count = loop->binary_multiply_adds + loop->real_multiply_adds;
    printf("%-28s %-36s %9.4f %5.1f%% %15.0f %7.1f\n", loop->layer, loop->parts, (double)took * 1e-6,
           100 * (double)took / whole, (double)count, per_nanosecond(count, took));
    products += count;
    inside += took;
  }
  const double rest = (double)times->least - (double)inside;
  printf("%-65s %9.4f %5.1f%%\n", "the rest", rest * 1e-6, 100 * rest / whole);
  printf("%-65s %9.4f %5.1f%% %15.0f %7.1f\n", "all", whole * 1e-6, 100.0, (double)products,
         per_nanosecond(products, times->least));
}

static void print_loops(const ftbnn_times *times) {
  printf(", \"loops\": [");
  for (int i = 0; i < FTBNN_LOOPS; i++) {
    const ftbnn_loop *loop = &ftbnn_loops[i];
    printf("%s\n  {\"layer\": ", i ? "," : "");
    print_string(loop->layer);
    printf(", \"parts\": ");
    print_string(loop->parts);
    printf(", \"operations\": ");
    print_string(loop->operations);
    print_number("binary_multiply_adds", loop->binary_multiply_adds);
    print_number("real_multiply_adds", loop->real_multiply_adds);
    print_number("elements", loop->elements);
    print_number("elementwise", loop->elementwise);
    print_number("packed", loop->packed);
    print_number("ns", times->loops[i]);
    printf("}");
  }
  printf("]");
}

#endif

/* Runs a product alone, and returns how long the quickest of many runs takes. */
static uint64_t time_product(ftbnn_net *net, const ftbnn_conv *conv) {
  const uint64_t begun = nanoseconds();
  const int plane = (conv->height * conv->width + 1) * ftbnn_position_words(conv);
  const int positions = conv->out_height * conv->out_width;
  /* What the product reads, of no image. Inputs that are 0 would take time, and few are. */
  const ftbnn_signs signs = {net->signs, conv->form == FTBNN_TERNARY ? net->signs + plane : 0};
  uint64_t least = 0;
  for (int i = 0; i < plane; i++) signs.positive[i] = 0;
  if (signs.nonzero) {
    uint32_t *to = signs.nonzero;
    for (int i = 0; i < conv->height * conv->width; i++) {
      for (int g = 0; g < conv->groups; g++) {
        int left = conv->group[g].in_features;
        for (; left > 0; left -= 32) *to++ = left < 32 ? ((uint32_t)1 << left) - 1 : 0xffffffffu;
      }
    }
  }
  for (int round = 0; round < FTBNN_LEAST_ROUNDS || nanoseconds() - begun < 20000000u; round++) {
    const uint64_t before = nanoseconds();
    for (int first = 0; first < positions; first += FTBNN_BLOCK)
      ftbnn_convolve(conv, signs, first, ftbnn_smaller(FTBNN_BLOCK, positions - first), net->windows, net->sums);
    const uint64_t took = nanoseconds() - before;
    if (!round || took < least) least = took;
  }
  return least;
}

static uint64_t multiply_adds(const ftbnn_conv *conv) {
  uint64_t count = 0;
  for (int g = 0; g < conv->groups; g++) {
    count += (uint64_t)conv->group[g].in_features * (uint64_t)conv->group[g].features;
  }
  return count * (uint64_t)(conv->kernel_height * conv->kernel_width) *
         (uint64_t)(conv->out_height * conv->out_width);
}

/* Each binary product by itself, without what follows it in its loop. */
static void benchmark_products(ftbnn_net *net, int as_json) {
  static const char *const forms[] = {"xnor", "and", "ternary"};
  if (as_json)
    printf(", \"products\": [");
  else
    printf("\n%-28s %-8s %-22s %9s %15s %7s\n", "binary product alone", "form", "inputs to outputs", "ms",
           "multiply-adds", "per ns");
  for (int i = 0; i < FTBNN_BLOCKS; i++) {
    const ftbnn_conv *conv = &ftbnn_convs[i];
    const uint64_t count = multiply_adds(conv), took = time_product(net, conv);
    if (as_json) {
      printf("%s\n  {\"name\": ", i ? "," : "");
      print_string(ftbnn_block_names[i]);
      printf(", \"form\": \"%s\", \"groups\": %d, \"in_features\": [", forms[conv->form], conv->groups);
      for (int g = 0; g < conv->groups; g++) printf("%s%d", g ? ", " : "", conv->group[g].in_features);
      printf("], \"features\": [");
      for (int g = 0; g < conv->groups; g++) printf("%s%d", g ? ", " : "", conv->group[g].features);
      printf("], \"kernel\": [%d, %d], \"strides\": [%d, %d], \"output\": [%d, %d]", conv->kernel_height,
             conv->kernel_width, conv->stride_y, conv->stride_x, conv->out_height, conv->out_width);
      print_number("binary_multiply_adds", count);
      print_number("ns", took);
      printf("}");
    } else {
      char shape[64];
      snprintf(shape, sizeof shape, "%dx%d to %dx%dx%d", conv->height, conv->width, conv->out_height,
               conv->out_width, conv->features);
      printf("%-28s %-8s %-22s %9.4f %15.0f %7.1f\n", ftbnn_block_names[i], forms[conv->form], shape,
             (double)took * 1e-6, (double)count, took ? (double)count / (double)took : 0);
    }
  }
  if (as_json) printf("]");
}

/* Prints what takes how long, all of it where `alone`: the products by themselves too. Returns 0 if a
 * prediction fails. */
static int report_times(ftbnn_net *net, const ftbnn_pixel *pixels, ftbnn_value *logits, int alone, int as_json) {
  ftbnn_times times;
  if (!time_predictions(net, pixels, logits, &times)) return 0;
  if (as_json) {
    printf("{\"kernels\": ");
    print_string(ftbnn_kernels());
    printf(", \"version\": ");
    print_string(ftbnn_version());
    print_number("predictions", (uint64_t)times.rounds);
    print_number("ns", times.least);
    print_number("median_ns", times.median);
#ifdef FTBNN_FRACTION_BITS
    print_number("fraction_bits", FTBNN_FRACTION_BITS);
#endif
  } else {
    printf("%.4f ms a prediction, the quickest of %d; the median %.4f ms; %s\n", (double)times.least * 1e-6,
           times.rounds, (double)times.median * 1e-6, ftbnn_kernels());
  }
#ifdef FTBNN_PROFILE
  if (as_json) {
    print_loops(&times);
  } else {
    printf("\n");
    print_profile(&times);
  }
#endif
  if (alone) benchmark_products(net, as_json);
  if (as_json) printf("}\n");
  return 1;
}

#endif

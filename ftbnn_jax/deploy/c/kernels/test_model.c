/* Checks this build against golden vectors: test_model [golden.bin]
 * or times it on the first of their images: test_model --profile|--benchmark [--json] [golden.bin]
 *
 * Every binary product runs on the very signs that reached it in the reference, and every integer is
 * compared. Then the whole network runs on the images, and every integer and every bit of every logit
 * is compared: numbers are added in one order, and each is rounded by itself, so that all builds give the
 * same ones, and one `checksum` over them. Prints one JSON object, `classes` being the most likely one of
 * each image; the exit status is 1 if anything differs, and 2 where there is nothing to compare with.
 *
 * --profile, in a build with FTBNN_PROFILE, is a table of what every loop takes; --benchmark is that, in such
 * a build, and the time of a prediction and of every binary product by itself. --json is for programs.
 */
/* For the clock of test_benchmark.h. */
#define _POSIX_C_SOURCE 199309L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ftbnn_layers.h"
#include "model.h"
#include "test_benchmark.h"

#ifdef FTBNN_FRACTION_BITS
#define FIXED_POINT 1
#else
#define FIXED_POINT 0
#endif

enum { HEADER_NUMBERS = 6 };

typedef struct {
  int positions, plane; /* of the output; words of one bit of every input value */
  uint32_t *positive, *nonzero;
  int16_t *expected;
  unsigned long compared, differing, end_to_end;
} block_state;

typedef struct {
  block_state blocks[FTBNN_BLOCKS];
  uint64_t checksum;
} state;

static ftbnn_net memory;
static const char *path = "golden.bin";

static void fail(const char *message) {
  fprintf(stderr, "error: %s: %s\n", path, message);
  exit(2);
}

static void *allocate(size_t count, size_t size) {
  void *memory_block = calloc(count, size);
  if (!memory_block) fail("out of memory");
  return memory_block;
}

/* Little-endian, whatever this machine's order is. */
static uint32_t read_number(FILE *file, int bytes) {
  uint32_t number = 0;
  for (int i = 0; i < bytes; i++) {
    int byte = getc(file);
    if (byte == EOF) fail("the golden vectors end early");
    number |= (uint32_t)byte << (8 * i);
  }
  return number;
}

static void add_to_checksum(state *s, uint32_t number) {
  for (int i = 0; i < 4; i++) s->checksum = (s->checksum ^ (number >> (8 * i) & 255)) * 1099511628211u;
}

static void prepare(state *s) {
  s->checksum = 14695981039346656037u;
  for (int i = 0; i < FTBNN_BLOCKS; i++) {
    const ftbnn_conv *conv = &ftbnn_convs[i];
    block_state *b = &s->blocks[i];
    b->positions = conv->out_height * conv->out_width;
    b->plane = conv->height * conv->width * ftbnn_position_words(conv);
    /* With a position outside, which is not in the file. */
    size_t words = (size_t)(b->plane + ftbnn_position_words(conv));
    b->positive = allocate(words, sizeof *b->positive);
    b->nonzero = allocate(words, sizeof *b->nonzero);
    b->expected = allocate((size_t)b->positions * (size_t)conv->features, sizeof *b->expected);
    b->compared = b->differing = b->end_to_end = 0;
  }
}

static void release(state *s) {
  for (int i = 0; i < FTBNN_BLOCKS; i++) {
    free(s->blocks[i].positive);
    free(s->blocks[i].nonzero);
    free(s->blocks[i].expected);
  }
}

/* Looks whether the file holds just as many images as it says, and goes back to the first. */
static void check_length(FILE *file, const state *s, uint32_t images) {
  const unsigned long head = 4 * HEADER_NUMBERS;
  unsigned long each = FTBNN_PIXEL_BYTES + 4ul * FTBNN_CLASSES;
  for (int i = 0; i < FTBNN_BLOCKS; i++) {
    const ftbnn_conv *conv = &ftbnn_convs[i];
    each += (conv->form == FTBNN_TERNARY ? 8ul : 4ul) * (unsigned long)s->blocks[i].plane;
    each += 2ul * (unsigned long)s->blocks[i].positions * (unsigned long)conv->features;
  }
  long length = fseek(file, 0, SEEK_END) ? -1 : ftell(file);
  if (length < (long)head) fail("cannot be read");
  unsigned long held = (unsigned long)length - head;
  if (held / each < images) fail("the golden vectors end early");
  if (held != images * each) fail("the golden vectors go on behind their end");
  if (fseek(file, (long)head, SEEK_SET)) fail("cannot be read");
}

static void read_pixels(FILE *file, ftbnn_pixel *pixels) {
  const int bytes = sizeof *pixels;
  for (size_t i = 0; i < FTBNN_PIXEL_BYTES / sizeof *pixels; i++) {
    uint32_t number = read_number(file, bytes);
    /* The lowest bytes come last on some machines. */
    unsigned char *to = (unsigned char *)&pixels[i];
    const uint16_t half = (uint16_t)number;
    const uint8_t byte = (uint8_t)number;
    memcpy(to, bytes == 4 ? (const void *)&number : bytes == 2 ? (const void *)&half : &byte, sizeof *pixels);
  }
}

static void read_block(FILE *file, const ftbnn_conv *conv, block_state *b) {
  for (int i = 0; i < b->plane; i++) b->positive[i] = read_number(file, 4);
  if (conv->form == FTBNN_TERNARY) {
    for (int i = 0; i < b->plane; i++) b->nonzero[i] = read_number(file, 4);
  }
  for (int i = 0; i < b->positions * conv->features; i++) {
    uint32_t number = read_number(file, 2);
    b->expected[i] = (int16_t)(number < 32768 ? (int32_t)number : (int32_t)number - 65536);
  }
}

static unsigned long count_differing(const int32_t *sums, const int16_t *expected, int count) {
  unsigned long found = 0;
  for (int i = 0; i < count; i++) found += sums[i] != expected[i];
  return found;
}

static void check_block(const ftbnn_conv *conv, block_state *b) {
  ftbnn_signs signs = {b->positive, b->nonzero};
  for (int first = 0; first < b->positions; first += FTBNN_BLOCK) {
    int count = b->positions - first < FTBNN_BLOCK ? b->positions - first : FTBNN_BLOCK;
    ftbnn_convolve(conv, signs, first, count, memory.windows, memory.sums);
    for (int p = 0; p < count; p++)
      b->differing += count_differing(memory.sums + p * (conv->features + FTBNN_SLACK),
                                      b->expected + (first + p) * conv->features, conv->features);
  }
  b->compared += (unsigned long)b->positions * (unsigned long)conv->features;
}

static void observe(void *context, int block, int position, const int32_t *sums) {
  state *s = context;
  int features = ftbnn_convs[block].features;
  s->blocks[block].end_to_end +=
      count_differing(sums, s->blocks[block].expected + position * features, features);
  for (int i = 0; i < features; i++) add_to_checksum(s, (uint32_t)sums[i]);
}

static int largest(const ftbnn_value *logits) {
  int best = 0;
  for (int i = 1; i < FTBNN_CLASSES; i++) best = logits[i] > logits[best] ? i : best;
  return best;
}

/* What the command line asks for. */
typedef struct {
  int profile, benchmark, json;
} request;

static request parse(int argc, char **argv) {
  request asked = {0, 0, 0};
  int paths = 0;
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--profile")) {
      asked.profile = 1;
    } else if (!strcmp(argv[i], "--benchmark")) {
      asked.benchmark = 1;
    } else if (!strcmp(argv[i], "--json")) {
      asked.json = 1;
    } else if (strncmp(argv[i], "--", 2) && !paths++) {
      path = argv[i];
    } else {
      path = argv[i];
      fail("test_model [--profile|--benchmark [--json]] [golden.bin] expected");
    }
  }
#ifndef FTBNN_PROFILE
  if (asked.profile) {
    path = "--profile";
    fail("this build counts no time; `make profile` makes one that does, or -DFTBNN_PROFILE");
  }
#endif
  if (asked.json && !asked.profile && !asked.benchmark) {
    path = "--json";
    fail("goes with --profile or --benchmark");
  }
  return asked;
}

int main(int argc, char **argv) {
  static state s;
  static ftbnn_pixel pixels[FTBNN_PIXEL_BYTES / sizeof(ftbnn_pixel)];
  static ftbnn_value logits[FTBNN_CLASSES];
  static uint32_t expected[FTBNN_CLASSES];
  const request asked = parse(argc, argv);
  FILE *file = fopen(path, "rb");
  if (!file) fail("cannot be read");
  const uint32_t header[HEADER_NUMBERS - 1] = {0x47425446u, FTBNN_PIXEL_BYTES, FTBNN_BLOCKS, FTBNN_CLASSES, FIXED_POINT};
  for (int i = 0; i < HEADER_NUMBERS - 1; i++) {
    if (read_number(file, 4) != header[i]) fail("golden vectors of another network");
  }
  uint32_t images = read_number(file, 4);
  if (!images) fail("no golden vectors");
  ftbnn_net *net;
  prepare(&s);
  check_length(file, &s, images);
  if (ftbnn_init(&memory, sizeof memory, &net) || ftbnn_observe(net, observe, &s)) fail("init");

  if (asked.profile || asked.benchmark) {
    if (ftbnn_observe(net, 0, 0)) fail("init");
    read_pixels(file, pixels);
    fclose(file);
    release(&s);
    if (!report_times(net, pixels, logits, asked.benchmark, asked.json)) fail("predict");
    return 0;
  }

  unsigned long saturated = 0, logits_differing = 0;
  for (uint32_t image = 0; image < images; image++) {
    read_pixels(file, pixels);
    for (int i = 0; i < FTBNN_BLOCKS; i++) {
      read_block(file, &ftbnn_convs[i], &s.blocks[i]);
      check_block(&ftbnn_convs[i], &s.blocks[i]);
    }
    for (int i = 0; i < FTBNN_CLASSES; i++) expected[i] = read_number(file, 4);
    int status = ftbnn_predict(net, pixels, sizeof pixels, logits, FTBNN_CLASSES);
    if (status < 0) fail("predict");
    saturated += status == FTBNN_SATURATED;
    printf("%s%d", image ? ", " : "{\"classes\": [", largest(logits));
    for (int i = 0; i < FTBNN_CLASSES; i++) {
      uint32_t bits;
      ftbnn_value wanted;
      memcpy(&bits, &logits[i], 4);
      memcpy(&wanted, &expected[i], 4);
      add_to_checksum(&s, bits);
      /* NaN equals nothing, whatever its bits are. */
      logits_differing += bits != expected[i] || !(logits[i] == wanted);
    }
  }
  fclose(file);

  unsigned long wrong = logits_differing;
  printf("], \"kernels\": \"%s\", \"images\": %lu, \"saturated\": %lu, ", ftbnn_kernels(),
         (unsigned long)images, saturated);
  printf("\"logits_differing\": %lu, \"checksum\": \"%08lx%08lx\", \"blocks\": [", logits_differing,
         (unsigned long)(s.checksum >> 32), (unsigned long)(s.checksum & 0xffffffffu));
  for (int i = 0; i < FTBNN_BLOCKS; i++) {
    block_state *b = &s.blocks[i];
    wrong += b->differing + b->end_to_end;
    printf("%s\n  {\"name\": ", i ? "," : "");
    print_string(ftbnn_block_names[i]);
    printf(", \"compared\": %lu, \"differing\": %lu, \"end_to_end\": %lu}", b->compared, b->differing, b->end_to_end);
  }
  printf("]}\n");
  release(&s);
  return wrong ? 1 : 0;
}

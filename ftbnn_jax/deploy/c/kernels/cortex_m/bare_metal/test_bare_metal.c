/* test_model without files, heap and C library: golden vectors lie in flash. The same comparisons, and with AS_JSON
 * the same JSON object with the same checksum, and beside it the bytes of stack that a prediction takes, and what
 * each loop takes: ticks of the processor's clock. QEMU's -icount makes a tick of PER_TICK instructions.
 *
 * Compiled with FTBNN_PROFILE, as model.c must be too.
 */
#include "bare_metal.h"
#include "ftbnn_layers.h"
#include "model.h"

#ifdef FTBNN_FRACTION_BITS
#define FIXED_POINT 1
#else
#define FIXED_POINT 0
#endif
#ifndef PER_TICK
#define PER_TICK 1
#endif

enum { HEADER_NUMBERS = 6, MOST_CLASSES = 64 };

extern const uint8_t golden_begin[], golden_end[];
__asm__(".pushsection .rodata.golden, \"a\"\n.balign 4\n.global golden_begin, golden_end\n"
        "golden_begin: .incbin \"golden.bin\"\ngolden_end: .popsection\n");

typedef struct {
  const uint8_t *expected; /* integers of the image at hand, int16 */
  uint32_t compared, differing, end_to_end;
} block_state;

typedef struct {
  uint32_t images, saturated, logits_differing, stack;
  uint64_t ticks, loops[FTBNN_LOOPS];
  int classes[MOST_CLASSES];
} results;

static block_state blocks[FTBNN_BLOCKS];
static uint64_t checksum = 14695981039346656037u;
static ftbnn_net memory;
static ftbnn_pixel pixels[FTBNN_PIXEL_BYTES / sizeof(ftbnn_pixel)];
static ftbnn_value logits[FTBNN_CLASSES];
static const uint8_t *at = golden_begin;

static void fail(const char *message) {
  print("error: golden.bin: ");
  print(message);
  print("\n");
  quit(2);
}

static uint32_t number_at(const uint8_t *bytes) {
  return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* Returns where the next bytes of the golden vectors lie. */
static const uint8_t *take(size_t bytes) {
  const uint8_t *taken = at;
  if ((size_t)(golden_end - at) < bytes) fail("the golden vectors end early");
  at += bytes;
  return taken;
}

static uint32_t take_number(void) { return number_at(take(4)); }

static void add_to_checksum(uint32_t number) {
  for (int i = 0; i < 4; i++) checksum = (checksum ^ (number >> (8 * i) & 255)) * 1099511628211u;
}

static uint32_t count_differing(const int32_t *sums, const uint8_t *expected, int count) {
  uint32_t found = 0;
  for (int i = 0; i < count; i++, expected += 2) {
    const uint32_t number = expected[0] | (uint32_t)expected[1] << 8;
    found += sums[i] != (number < 32768 ? (int32_t)number : (int32_t)number - 65536);
  }
  return found;
}

/* Runs a binary product on the signs that reached it in the reference, in the network's own memory. */
static void check_block(const ftbnn_conv *conv, block_state *b) {
  const int positions = conv->out_height * conv->out_width;
  const size_t position_words = (size_t)ftbnn_position_words(conv);
  const size_t plane = (size_t)(conv->height * conv->width) * position_words;
  uint32_t *positive = memory.signs, *nonzero = positive + plane + position_words;
  for (size_t i = 0; i < plane; i++) positive[i] = take_number();
  if (conv->form == FTBNN_TERNARY) {
    for (size_t i = 0; i < plane; i++) nonzero[i] = take_number();
  }
  b->expected = take(2 * (size_t)positions * (size_t)conv->features);
  const ftbnn_signs signs = {positive, conv->form == FTBNN_TERNARY ? nonzero : 0};
  for (int first = 0; first < positions; first += FTBNN_BLOCK) {
    const int count = ftbnn_smaller(FTBNN_BLOCK, positions - first);
    ftbnn_convolve(conv, signs, first, count, memory.windows, memory.sums);
    for (int p = 0; p < count; p++) {
      const uint8_t *expected = b->expected + 2 * (first + p) * conv->features;
      b->differing += count_differing(memory.sums + p * (conv->features + FTBNN_SLACK), expected, conv->features);
    }
  }
  b->compared += (uint32_t)(positions * conv->features);
}

static void observe(void *context, int block, int position, const int32_t *sums) {
  (void)context;
  const int features = ftbnn_convs[block].features;
  blocks[block].end_to_end += count_differing(sums, blocks[block].expected + 2 * position * features, features);
  for (int i = 0; i < features; i++) add_to_checksum((uint32_t)sums[i]);
}

static int largest(void) {
  int best = 0;
  for (int i = 1; i < FTBNN_CLASSES; i++) best = logits[i] > logits[best] ? i : best;
  return best;
}

/* Looks at every bit of every logit; returns how many differ. */
static uint32_t check_logits(void) {
  uint32_t differing = 0;
  for (int i = 0; i < FTBNN_CLASSES; i++) {
    uint32_t bits, expected = take_number();
    ftbnn_value wanted;
    memcpy(&bits, &logits[i], 4);
    memcpy(&wanted, &expected, 4);
    add_to_checksum(bits);
    /* NaN equals nothing, whatever its bits are. */
    differing += bits != expected || !(logits[i] == wanted);
  }
  return differing;
}

uint64_t ftbnn_clock(void) { return clock_ticks(); }


/* Counts what the first image takes, as users run it: every layer, and the stack. */
static void measure(ftbnn_net *net, results *r) {
  memset(ftbnn_ticks, 0, sizeof ftbnn_ticks);
  paint_stack();
  const uint64_t start = clock_ticks();
  ftbnn_predict(net, pixels, sizeof pixels, logits, FTBNN_CLASSES);
  r->ticks = clock_ticks() - start;
  r->stack = stack_used();
  memcpy(r->loops, ftbnn_ticks, sizeof ftbnn_ticks);
}

static void print_checksum(void) {
  char text[17];
  for (int i = 0; i < 16; i++) text[i] = "0123456789abcdef"[checksum >> (60 - 4 * i) & 15];
  text[16] = 0;
  print(text);
}

static uint64_t instructions(uint64_t ticks) { return ticks * PER_TICK; }

#ifdef AS_JSON

/* Prints a JSON string of UTF-8. */
static void print_string(const char *text) {
  char out[3] = {0};
  print("\"");
  for (; *text; text++) {
    const int is_escaped = *text == '"' || *text == '\\';
    out[0] = is_escaped ? '\\' : *text;
    out[1] = is_escaped ? *text : 0;
    print(out);
  }
  print("\"");
}

static void print_field(const char *name, uint64_t number) {
  print(", \"");
  print(name);
  print("\": ");
  print_number(number);
}

static void print_json(const results *r) {
  print("{\"classes\": [");
  for (uint32_t i = 0; i < r->images && i < MOST_CLASSES; i++) {
    if (i) print(", ");
    print_number((uint64_t)r->classes[i]);
  }
  print("], \"kernels\": ");
  print_string(ftbnn_kernels());
  print_field("images", r->images);
  print_field("saturated", r->saturated);
  print_field("logits_differing", r->logits_differing);
  print_field("arena_bytes", sizeof memory);
  print_field("stack_bytes", r->stack);
  print_field("instructions", instructions(r->ticks));
  print(", \"checksum\": \"");
  print_checksum();
  print("\", \"blocks\": [");
  for (int i = 0; i < FTBNN_BLOCKS; i++) {
    print(i ? ",\n  {\"name\": " : "\n  {\"name\": ");
    print_string(ftbnn_block_names[i]);
    print_field("compared", blocks[i].compared);
    print_field("differing", blocks[i].differing);
    print_field("end_to_end", blocks[i].end_to_end);
    print("}");
  }
  print("], \"loops\": [");
  for (int i = 0; i < FTBNN_LOOPS; i++) {
    const ftbnn_loop *loop = &ftbnn_loops[i];
    print(i ? ",\n  {\"layer\": " : "\n  {\"layer\": ");
    print_string(loop->layer);
    print(", \"parts\": ");
    print_string(loop->parts);
    print_field("binary_multiply_adds", loop->binary_multiply_adds);
    print_field("real_multiply_adds", loop->real_multiply_adds);
    print_field("elements", loop->elements);
    print_field("elementwise", loop->elementwise);
    print_field("packed", loop->packed);
    print_field("instructions", instructions(r->loops[i]));
    print("}");
  }
  print("]}\n");
}

#else

/* Prints text or a number in a column. */
static void print_text(const char *text, int width) {
  print(text);
  for (; *text; text++) width--;
  for (; width > 0; width--) print(" ");
}

static void print_right(uint64_t number, int width) {
  for (uint64_t power = 10; number >= power && power < 10000000000000000000u; power *= 10) width--;
  for (; width > 1; width--) print(" ");
  print_number(number);
}

static void print_table(const results *r) {
  uint64_t compared = 0, differing = 0;
  print_text("layer", 28);
  print_text("what", 36);
  print("instructions   multiply-adds\n");
  for (int i = 0; i < FTBNN_LOOPS; i++) {
    const ftbnn_loop *loop = &ftbnn_loops[i];
    print_text(loop->layer, 28);
    print_text(loop->parts, 36);
    print_right(instructions(r->loops[i]), 12);
    print_right(loop->binary_multiply_adds + loop->real_multiply_adds, 16);
    print("\n");
  }
  print_text("a prediction", 64);
  print_right(instructions(r->ticks), 12);
  for (int i = 0; i < FTBNN_BLOCKS; i++) {
    compared += 2 * blocks[i].compared;
    differing += blocks[i].differing + blocks[i].end_to_end;
  }
  print("\nstack of a prediction: ");
  print_number(r->stack);
  print(" bytes\n");
  print_number(differing);
  print(" of ");
  print_number(compared);
  print(" integers and ");
  print_number(r->logits_differing);
  print(" of ");
  print_number((uint64_t)r->images * FTBNN_CLASSES);
  print(" logits differ from the golden vectors', checksum ");
  print_checksum();
  print("\n");
}

#endif

int run_program(void) {
  static results r;
  const uint32_t header[HEADER_NUMBERS - 1] = {0x47425446u, FTBNN_PIXEL_BYTES, FTBNN_BLOCKS, FTBNN_CLASSES, FIXED_POINT};
  for (int i = 0; i < HEADER_NUMBERS - 1; i++) {
    if (take_number() != header[i]) fail("golden vectors of another network");
  }
  r.images = take_number();
  if (!r.images) fail("no golden vectors");
  ftbnn_net *net;
  if (ftbnn_init(&memory, sizeof memory, &net) != FTBNN_OK) fail("init");

  for (uint32_t image = 0; image < r.images; image++) {
    /* The lowest byte comes first, as here. */
    memcpy(pixels, take(FTBNN_PIXEL_BYTES), FTBNN_PIXEL_BYTES);
    for (int i = 0; i < FTBNN_BLOCKS; i++) check_block(&ftbnn_convs[i], &blocks[i]);
    if (!image) measure(net, &r);
    ftbnn_observe(net, observe, 0);
    const int status = ftbnn_predict(net, pixels, sizeof pixels, logits, FTBNN_CLASSES);
    if (status < 0) fail("predict");
    ftbnn_observe(net, 0, 0);
    r.saturated += status == FTBNN_SATURATED;
    r.logits_differing += check_logits();
    if (image < MOST_CLASSES) r.classes[image] = largest();
  }
  if (at != golden_end) fail("the golden vectors go on behind their end");
#ifdef AS_JSON
  print_json(&r);
#else
  print_table(&r);
#endif
  uint32_t wrong = r.logits_differing;
  for (int i = 0; i < FTBNN_BLOCKS; i++) wrong += blocks[i].differing + blocks[i].end_to_end;
  return wrong ? 1 : 0;
}

/* What net.js calls of the network. Addresses of the module's memory are numbers there. */
#include <string.h>

#include "ftbnn_layers.h"
#include "model.h"
#ifdef FTBNN_IMAGE_SIZE
#include "ftbnn_image.h"
#endif

#define EXPORT(name) __attribute__((export_name(#name)))

enum { PAGE = 65536, CANNOT_BE = -20 };

/* Integers of a binary product that were compared with golden vectors and that differ: of the product by
 * itself, and of it within the network. */
typedef struct {
  uint32_t compared, differing, end_to_end;
} counts;

static ftbnn_net memory;
static ftbnn_net *net;
static ftbnn_pixel pixels[FTBNN_PIXEL_BYTES / sizeof(ftbnn_pixel)];
static ftbnn_value logits[FTBNN_CLASSES];
static counts blocks[FTBNN_BLOCKS];
static const uint8_t *expected[FTBNN_BLOCKS]; /* int16, little-endian, wherever they lie */
static uint64_t checksum;

/* Called for every binary product while the signs that it reads are in their place. */
__attribute__((import_module("page"), import_name("signs"))) void page_signs(int block);

extern unsigned char __heap_base;

/* Returns memory of so many bytes, the same at every call, or 0 where there is not so much. */
EXPORT(room) uint8_t *room(size_t bytes) {
  const uintptr_t start = ((uintptr_t)&__heap_base + 15) & ~(uintptr_t)15;
  const uintptr_t held = (uintptr_t)__builtin_wasm_memory_size(0) * PAGE;
  if (bytes > UINTPTR_MAX - start - PAGE) return 0;
  if (start + bytes > held) {
    const size_t more = (start + bytes - held + PAGE - 1) / PAGE;
    if (__builtin_wasm_memory_grow(0, more) == (size_t)-1) return 0;
  }
  return (uint8_t *)start;
}

EXPORT(init) int init(void) {
  checksum = 14695981039346656037u;
  memset(blocks, 0, sizeof blocks);
  return ftbnn_init(&memory, sizeof memory, &net);
}

EXPORT(pixels) ftbnn_pixel *pixels_at(void) { return pixels; }
EXPORT(logits) ftbnn_value *logits_at(void) { return logits; }
EXPORT(blocks) counts *blocks_at(void) { return blocks; }
EXPORT(signs) uint32_t *signs_at(void) { return memory.signs; }
EXPORT(checksum) uint64_t *checksum_at(void) { return &checksum; }
EXPORT(kernels) const char *kernels(void) { return ftbnn_kernels(); }
EXPORT(version) const char *version(void) { return ftbnn_version(); }

/* Makes the network's pixels of an image, [height][width][channels]. */
EXPORT(preprocess) int preprocess(const uint8_t *image, int width, int height) {
#ifdef FTBNN_IMAGE_SIZE
  static const ftbnn_preprocessing how = {FTBNN_IMAGE_SIZE, FTBNN_CHANNELS, FTBNN_CROP, FTBNN_ANTIALIAS};
  const ftbnn_image found = {width, height, FTBNN_CHANNELS, image};
  return ftbnn_preprocess(&found, &how, pixels);
#else
  (void)image, (void)width, (void)height;
  return CANNOT_BE;
#endif
}

EXPORT(predict) int predict(void) { return ftbnn_predict(net, pixels, sizeof pixels, logits, FTBNN_CLASSES); }

static void show_signs(void *context, int block, int position, const int32_t *sums) {
  (void)context, (void)sums;
  if (position == 0) page_signs(block);
}

/* Predicts, and tells of every product's signs. */
EXPORT(predict_with_signs) int predict_with_signs(void) {
  ftbnn_observe(net, show_signs, 0);
  int status = predict();
  ftbnn_observe(net, 0, 0);
  return status;
}

static uint32_t count_differing(const int32_t *sums, const uint8_t *wanted, int count) {
  uint32_t found = 0;
  for (int i = 0; i < count; i++) {
    int16_t number;
    memcpy(&number, wanted + 2 * i, sizeof number);
    found += sums[i] != number;
  }
  return found;
}

static void add_to_checksum(uint32_t number) {
  for (int i = 0; i < 4; i++) checksum = (checksum ^ (number >> (8 * i) & 255)) * 1099511628211u;
}

static void compare(void *context, int block, int position, const int32_t *sums) {
  (void)context;
  const int features = ftbnn_convs[block].features;
  const size_t start = 2 * (size_t)position * (size_t)features;
  blocks[block].end_to_end += count_differing(sums, expected[block] + start, features);
  for (int i = 0; i < features; i++) add_to_checksum((uint32_t)sums[i]);
}

/* Runs a product on the signs that are in the network's memory. */
static void check_block(int block) {
  const ftbnn_conv *conv = &ftbnn_convs[block];
  const int positions = conv->out_height * conv->out_width, words = ftbnn_position_words(conv);
  const int plane = (conv->height * conv->width + 1) * words;
  const ftbnn_signs signs = {memory.signs, conv->form == FTBNN_TERNARY ? memory.signs + plane : 0};
  for (int first = 0; first < positions; first += FTBNN_BLOCK) {
    const int count = ftbnn_smaller(FTBNN_BLOCK, positions - first);
    ftbnn_convolve(conv, signs, first, count, memory.windows, memory.sums);
    for (int p = 0; p < count; p++)
      blocks[block].differing +=
          count_differing(memory.sums + p * (conv->features + FTBNN_SLACK),
                          expected[block] + 2 * (first + p) * conv->features, conv->features);
  }
  blocks[block].compared += (uint32_t)(positions * conv->features);
}

/* Checks one image of the golden vectors, as test_model does: every product on the signs that reached it in
 * the reference, then the network. Returns how many logits differ. */
EXPORT(check) int check(const uint8_t *golden) {
  memcpy(pixels, golden, sizeof pixels);
  golden += sizeof pixels;
  for (int block = 0; block < FTBNN_BLOCKS; block++) {
    const ftbnn_conv *conv = &ftbnn_convs[block];
    const size_t words = (size_t)ftbnn_position_words(conv);
    const size_t plane = (size_t)(conv->height * conv->width) * words;
    for (int bit = 0; bit < (conv->form == FTBNN_TERNARY ? 2 : 1); bit++) {
      memcpy(memory.signs + (size_t)bit * (plane + words), golden, 4 * plane);
      golden += 4 * plane;
    }
    expected[block] = golden;
    golden += 2 * (size_t)(conv->out_height * conv->out_width * conv->features);
    check_block(block);
  }
  ftbnn_observe(net, compare, 0);
  predict();
  ftbnn_observe(net, 0, 0);
  int differing = 0;
  for (int i = 0; i < FTBNN_CLASSES; i++) {
    uint32_t bits, wanted;
    ftbnn_value value;
    memcpy(&bits, &logits[i], sizeof bits);
    memcpy(&wanted, golden + 4 * i, sizeof wanted);
    memcpy(&value, &wanted, sizeof value);
    add_to_checksum(bits);
    /* NaN equals nothing, whatever its bits are. */
    differing += bits != wanted || !(logits[i] == value);
  }
  return differing;
}

/* image_cases FILES: reads images from a file of cases (4 bytes of length, the bytes), each from memory of its
 * own that ends where the image ends, preprocesses them, and prints a status a line; then tries the network's
 * own errors.
 *
 * image_cases CASES PIXELS: preprocesses images (width, height, channels, size, crop, antialias, 4 bytes each,
 * and the image's pixels) and writes the network's pixels of all. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ftbnn_image.h"
#include "model.h"

static ftbnn_net memory;

static int classify(const uint8_t *bytes, size_t length) {
  static uint8_t pixels[FTBNN_PIXEL_BYTES];
  ftbnn_image image;
  int status = ftbnn_read_pnm(bytes, length, &image);
  const ftbnn_preprocessing how = {FTBNN_IMAGE_SIZE, FTBNN_CHANNELS, FTBNN_CROP, FTBNN_ANTIALIAS};
  if (!status) status = ftbnn_preprocess(&image, &how, pixels);
  return status;
}

/* Reads a number of 4 bytes; -1 at the end. */
static int read_number(FILE *file) {
  uint8_t bytes[4];
  if (fread(bytes, 1, 4, file) != 4) return -1;
  return bytes[0] | bytes[1] << 8 | bytes[2] << 16;
}

static uint8_t *read_bytes(FILE *file, size_t length) {
  uint8_t *bytes = malloc(length ? length : 1);
  if (!bytes || fread(bytes, 1, length, file) != length) exit(2);
  return bytes;
}

static int preprocess_all(FILE *file, FILE *output) {
  for (int width; (width = read_number(file)) >= 0;) {
    ftbnn_image image = {width, read_number(file), 0, 0};
    ftbnn_preprocessing how;
    image.channels = how.channels = read_number(file);
    how.size = read_number(file);
    how.crop = read_number(file);
    how.antialias = read_number(file);
    uint8_t *bytes = read_bytes(file, (size_t)width * (size_t)image.height * (size_t)image.channels);
    size_t length = (size_t)how.size * (size_t)how.size * (size_t)how.channels;
    uint8_t *pixels = malloc(length);
    image.pixels = bytes;
    if (!pixels || ftbnn_preprocess(&image, &how, pixels)) return 2;
    if (fwrite(pixels, 1, length, output) != length) return 2;
    free(bytes);
    free(pixels);
  }
  return fclose(output) ? 2 : 0;
}

int main(int argc, char **argv) {
  FILE *file = argc > 1 ? fopen(argv[1], "rb") : 0;
  FILE *output = argc > 2 ? fopen(argv[2], "wb") : 0;
  if (!file) return 2;
  if (output) return preprocess_all(file, output);
  for (int length; (length = read_number(file)) >= 0;) {
    uint8_t *bytes = read_bytes(file, (size_t)length);
    printf("%d\n", classify(bytes, (size_t)length));
    free(bytes);
  }
  fclose(file);

  static uint8_t pixels[FTBNN_PIXEL_BYTES];
  static ftbnn_value logits[FTBNN_CLASSES];
  uint8_t *unaligned = (uint8_t *)&memory + 1;
  ftbnn_net *net = &memory;
  ftbnn_image image = {2, 2, FTBNN_CHANNELS, 0};
  ftbnn_preprocessing how = {4, FTBNN_CHANNELS, 0, 1};
  printf("%d", ftbnn_predict(&memory, pixels, sizeof pixels, logits, FTBNN_CLASSES));
  printf(" %d", ftbnn_observe(&memory, 0, 0));
  printf(" %d", ftbnn_init(0, sizeof memory, &net));
  printf(" %d", net == 0);
  printf(" %d", ftbnn_init(&memory, sizeof memory, 0));
  printf(" %d", ftbnn_init(&memory, sizeof memory - 1, &net));
  printf(" %d", ftbnn_init(unaligned, FTBNN_ARENA_BYTES, &net));
  printf(" %d", ftbnn_init(&memory, FTBNN_ARENA_BYTES, &net));
  printf(" %d", ftbnn_predict(0, pixels, sizeof pixels, logits, FTBNN_CLASSES));
  printf(" %d", ftbnn_predict(net, 0, sizeof pixels, logits, FTBNN_CLASSES));
  printf(" %d", ftbnn_predict(net, pixels, sizeof pixels, 0, FTBNN_CLASSES));
  printf(" %d", ftbnn_predict(net, pixels, sizeof pixels - 1, logits, FTBNN_CLASSES));
  printf(" %d", ftbnn_predict(net, pixels, sizeof pixels, logits, FTBNN_CLASSES + 1));
  printf(" %d", ftbnn_predict(net, pixels, sizeof pixels, logits, FTBNN_CLASSES));
  printf(" %d", ftbnn_observe(0, 0, 0));
  printf(" %d", ftbnn_read_pnm(0, 9, &image));
  printf(" %d", ftbnn_read_pnm(pixels, sizeof pixels, 0));
  printf(" %d", ftbnn_preprocess(&image, &how, pixels));
  image.pixels = pixels;
  printf(" %d", ftbnn_preprocess(&image, 0, pixels));
  how.crop = 257;
  printf(" %d", ftbnn_preprocess(&image, &how, pixels));
  how.crop = 256;
  how.size = 0;
  printf(" %d", ftbnn_preprocess(&image, &how, pixels));
  how.size = 16385;
  printf(" %d", ftbnn_preprocess(&image, &how, pixels));
  how.size = 2;
  how.channels = 1;
  printf(" %d\n", ftbnn_preprocess(&image, &how, pixels));
  return 0;
}

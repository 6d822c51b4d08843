/* Reads images from a file of cases (4 bytes of length, the bytes), each from memory of its own that ends
 * where the image ends, resizes them, and prints a status a line; then tries the network's own errors. */
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
  if (!status) status = ftbnn_resize(&image, FTBNN_IMAGE_SIZE, FTBNN_CHANNELS, pixels);
  return status;
}

int main(int argc, char **argv) {
  uint8_t head[4];
  FILE *file = argc == 2 ? fopen(argv[1], "rb") : 0;
  if (!file) return 2;
  while (fread(head, 1, 4, file) == 4) {
    size_t length = head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16;
    uint8_t *bytes = malloc(length ? length : 1);
    if (!bytes || fread(bytes, 1, length, file) != length) return 2;
    printf("%d\n", classify(bytes, length));
    free(bytes);
  }
  fclose(file);

  static uint8_t pixels[FTBNN_PIXEL_BYTES];
  static ftbnn_value logits[FTBNN_CLASSES];
  uint8_t *unaligned = (uint8_t *)&memory + 1;
  ftbnn_net *net = &memory;
  ftbnn_image image = {2, 2, FTBNN_CHANNELS, 0};
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
  printf(" %d\n", ftbnn_resize(&image, 4, FTBNN_CHANNELS, pixels));
  return 0;
}

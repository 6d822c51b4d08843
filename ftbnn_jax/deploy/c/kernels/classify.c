/* Classifies an image: classify FILE [--raw WIDTH HEIGHT] [--repeat N] [--pixels OUTPUT]
 *
 * FILE is a binary PPM (P6), or PGM (P5) for a network of one channel, of 8 bits; with --raw it is nothing
 * but pixels. Its centre is cut out and resized as the network wants it; --pixels writes what enters the
 * network to OUTPUT, as a PPM or PGM. Prints the five most likely classes and the time of one prediction,
 * the median of N.
 */
#define _POSIX_C_SOURCE 199309L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ftbnn_image.h"
#include "model.h"

#define USAGE "usage: classify FILE [--raw WIDTH HEIGHT] [--repeat N] [--pixels OUTPUT]"

enum { TOP = 5, MOST_REPEATS = 1000 };

static ftbnn_net memory;

static int refuse(const char *what, const char *why) {
  fprintf(stderr, "error: %s: %s\n", what, why);
  return 2;
}

static double now_ms(void) {
#ifdef CLOCK_MONOTONIC
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
#else
  return 1e3 * (double)clock() / CLOCKS_PER_SEC;
#endif
}

/* Reads a number from 1 to `most`, or returns 0. */
static int parse(const char *text, int most) {
  char *end;
  long number = strtol(text, &end, 10);
  return *text && !*end && number >= 1 && number <= most ? (int)number : 0;
}

/* Returns the bytes of a file, to be freed, or null. */
static uint8_t *read_file(const char *path, size_t *length) {
  /* The largest image of three channels takes three quarters of this. */
  const size_t most = 4 * (size_t)FTBNN_IMAGE_LARGEST * FTBNN_IMAGE_LARGEST;
  FILE *file = fopen(path, "rb");
  uint8_t *bytes = 0;
  size_t room = 0;
  *length = 0;
  while (file && *length == room && room < most) {
    size_t more = room ? 2 * room : 1 << 16;
    uint8_t *larger = realloc(bytes, more);
    if (!larger) break;
    bytes = larger;
    room = more;
    *length += fread(bytes + *length, 1, room - *length, file);
  }
  int complete = file && *length < room && !ferror(file);
  if (file) fclose(file);
  if (complete) return bytes;
  free(bytes);
  return 0;
}

/* Returns whether the network's pixels could be written. */
static int write_pixels(const char *path, const uint8_t *pixels) {
  FILE *file = fopen(path, "wb");
  if (!file) return 0;
  fprintf(file, "P%d %d %d 255\n", FTBNN_CHANNELS == 3 ? 6 : 5, FTBNN_IMAGE_SIZE, FTBNN_IMAGE_SIZE);
  fwrite(pixels, 1, FTBNN_PIXEL_BYTES, file);
  int failed = ferror(file);
  return !fclose(file) && !failed;
}

static int by_size(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double as_real(ftbnn_value logit) {
#ifdef FTBNN_FRACTION_BITS
  return (double)logit / (double)((int64_t)1 << FTBNN_FRACTION_BITS);
#else
  return (double)logit;
#endif
}

/* A name comes from elsewhere: nothing in it may move the cursor. */
static void print_name(const char *name) {
  for (; *name; name++) putchar((unsigned char)*name < 32 || *name == 127 ? '?' : *name);
}

static void print_top(const ftbnn_value *logits) {
  static unsigned char printed[FTBNN_CLASSES];
  for (int rank = 0; rank < TOP && rank < FTBNN_CLASSES; rank++) {
    int best = -1;
    for (int i = 0; i < FTBNN_CLASSES; i++) {
      if (!printed[i] && (best < 0 || logits[i] > logits[best])) best = i;
    }
    printed[best] = 1;
    printf("%d. ", rank + 1);
    print_name(ftbnn_class_names[best]);
    printf(" (class %d, logit %.4f)\n", best, as_real(logits[best]));
  }
}

int main(int argc, char **argv) {
  static uint8_t pixels[FTBNN_PIXEL_BYTES];
  static ftbnn_value logits[FTBNN_CLASSES];
  static double times[MOST_REPEATS];
  static const ftbnn_preprocessing how = {FTBNN_IMAGE_SIZE, FTBNN_CHANNELS, FTBNN_CROP, FTBNN_ANTIALIAS};
  const char *path = 0, *output = 0;
  int width = 0, height = 0, repeats = 1;
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--raw") && i + 2 < argc) {
      width = parse(argv[i + 1], FTBNN_IMAGE_LARGEST);
      height = parse(argv[i + 2], FTBNN_IMAGE_LARGEST);
      i += 2;
      if (!width || !height) return refuse("--raw", "width and height expected, 1 to 16384");
    } else if (!strcmp(argv[i], "--repeat") && i + 1 < argc) {
      repeats = parse(argv[++i], MOST_REPEATS);
      if (!repeats) return refuse("--repeat", "a number from 1 to 1000 expected");
    } else if (!strcmp(argv[i], "--pixels") && i + 1 < argc) {
      output = argv[++i];
    } else if (!path && argv[i][0] != '-') {
      path = argv[i];
    } else {
      return refuse(argv[i], "unexpected; " USAGE);
    }
  }
  if (!path) return refuse("classify", USAGE);

  size_t length;
  uint8_t *bytes = read_file(path, &length);
  if (!bytes) return refuse(path, "cannot be read");
  ftbnn_image image;
  int status = width ? ftbnn_read_raw(bytes, length, width, height, FTBNN_CHANNELS, &image)
                     : ftbnn_read_pnm(bytes, length, &image);
  if (!status) status = ftbnn_preprocess(&image, &how, pixels);
  free(bytes);
  if (status == FTBNN_IMAGE_CHANNELS)
    return refuse(path, FTBNN_CHANNELS == 3 ? "a colour image (P6) expected" : "a grey image (P5) expected");
  if (status) return refuse(path, width ? "not of that size" : "no whole binary PPM or PGM of 8 bits");

  if (output && !write_pixels(output, pixels)) return refuse(output, "cannot be written");

  ftbnn_net *net;
  if (ftbnn_init(&memory, sizeof memory, &net) != FTBNN_OK) return refuse("ftbnn_init", "failed");
  for (int i = 0; i < repeats; i++) {
    double start = now_ms();
    status = ftbnn_predict(net, pixels, sizeof pixels, logits, FTBNN_CLASSES);
    times[i] = now_ms() - start;
    if (status < 0) return refuse("ftbnn_predict", "failed");
  }
  print_top(logits);
  if (status == FTBNN_SATURATED) printf("a number left the range of fixed point on the way\n");
  qsort(times, (size_t)repeats, sizeof *times, by_size);
  printf("%.3f ms, %s\n", times[repeats / 2], ftbnn_kernels());
  return 0;
}

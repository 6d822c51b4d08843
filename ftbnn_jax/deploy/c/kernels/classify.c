/* Classifies images: classify [OPTION]... FILE..., as `classify --help` says.
 *
 * What cannot be read is named on standard error and passed over. Exit status: 0; 1 if an image could not be
 * read; 2 for a mistake in the command line.
 */
#define _POSIX_C_SOURCE 199309L

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ftbnn_image.h"
#include "model.h"

enum { BAD_IMAGE = 1, MISTAKE = 2, MOST_REPEATS = 1000 };

static const char usage[] =
    "usage: classify [OPTION]... FILE...\n"
    "Prints the most likely classes of each image, their probabilities, and the time of a prediction.\n"
    "\n"
    "FILE is a binary PPM (P6), or PGM (P5) for a network of one channel, of 8 bits. Its centre is cut out\n"
    "and resized as the network wants it.\n"
    "\n"
    "  --top N             classes to print, 5 unless given\n"
    "  --raw WIDTH HEIGHT  files are nothing but pixels, of this size\n"
    "  --repeat N          predicts N times, 1 to 1000; the time is the median\n"
    "  --pixels OUTPUT     of a single FILE: writes what enters the network, as a PPM or PGM\n"
    "  --help              prints this\n"
    "  --                  only files follow\n";

typedef struct {
  int width, height; /* 0: files say it */
  int repeats, top;
  const char *output; /* for pixels, or null */
} options;

static ftbnn_net memory;

/* A name comes from elsewhere: nothing in it may move the cursor. */
static void print_name(FILE *out, const char *name) {
  for (; *name; name++) putc((unsigned char)*name < 32 || *name == 127 ? '?' : *name, out);
}

static int refuse(int status, const char *what, const char *why) {
  fputs("error: ", stderr);
  print_name(stderr, what);
  fprintf(stderr, ": %s\n", why);
  return status;
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
    uint8_t *larger = (uint8_t *)realloc(bytes, more);
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

/* Prints the most likely classes; a probability is the softmax of the logits. */
static void print_top(const ftbnn_value *logits, int top) {
  static unsigned char printed[FTBNN_CLASSES];
  double largest = as_real(logits[0]), sum = 0;
  for (int i = 1; i < FTBNN_CLASSES; i++) {
    if (as_real(logits[i]) > largest) largest = as_real(logits[i]);
  }
  for (int i = 0; i < FTBNN_CLASSES; i++) sum += exp(as_real(logits[i]) - largest);
  memset(printed, 0, sizeof printed);
  for (int rank = 0; rank < top && rank < FTBNN_CLASSES; rank++) {
    int best = -1;
    for (int i = 0; i < FTBNN_CLASSES; i++) {
      if (!printed[i] && (best < 0 || logits[i] > logits[best])) best = i;
    }
    printed[best] = 1;
    printf("%d. ", rank + 1);
    print_name(stdout, ftbnn_class_names[best]);
    printf(" (class %d, probability %.6f)\n", best, exp(as_real(logits[best]) - largest) / sum);
  }
}

/* Reads an image and makes the network's pixels of it; returns an exit status. */
static int read_pixels(const char *path, const options *o, uint8_t *pixels) {
  static const ftbnn_preprocessing how = {FTBNN_IMAGE_SIZE, FTBNN_CHANNELS, FTBNN_CROP, FTBNN_ANTIALIAS};
  size_t length;
  uint8_t *bytes = read_file(path, &length);
  if (!bytes) return refuse(BAD_IMAGE, path, "cannot be read");
  ftbnn_image image;
  int status = o->width ? ftbnn_read_raw(bytes, length, o->width, o->height, FTBNN_CHANNELS, &image)
                        : ftbnn_read_pnm(bytes, length, &image);
  if (!status) status = ftbnn_preprocess(&image, &how, pixels);
  free(bytes);
  if (!status) return 0;
  const char *colour = FTBNN_CHANNELS == 3 ? "a colour image (P6) expected" : "a grey image (P5) expected";
  const char *other = o->width ? "not of that size" : "no whole binary PPM or PGM of 8 bits";
  return refuse(BAD_IMAGE, path, status == FTBNN_IMAGE_CHANNELS ? colour : other);
}

/* Classifies an image and prints what came of it; returns an exit status. */
static int classify(ftbnn_net *net, const char *path, const options *o, int headed) {
  static uint8_t pixels[FTBNN_PIXEL_BYTES];
  static ftbnn_value logits[FTBNN_CLASSES];
  static double times[MOST_REPEATS];
  int status = read_pixels(path, o, pixels);
  if (status) return status;
  if (o->output && !write_pixels(o->output, pixels)) return refuse(MISTAKE, o->output, "cannot be written");
  for (int i = 0; i < o->repeats; i++) {
    double start = now_ms();
    status = ftbnn_predict(net, pixels, sizeof pixels, logits, FTBNN_CLASSES);
    times[i] = now_ms() - start;
    if (status < 0) return refuse(MISTAKE, "ftbnn_predict", "failed");
  }
  if (headed) {
    print_name(stdout, path);
    printf(":\n");
  }
  print_top(logits, o->top);
  if (status == FTBNN_SATURATED) printf("a number left the range of fixed point on the way\n");
  qsort(times, (size_t)o->repeats, sizeof *times, by_size);
  printf("%.3f ms, %s\n", times[o->repeats / 2], ftbnn_kernels());
  return 0;
}

int main(int argc, char **argv) {
  options o = {0, 0, 1, 5, 0};
  int files = 0, only_files = 0;
  /* Files move to the front of the arguments. */
  for (int i = 1; i < argc; i++) {
    if (only_files || argv[i][0] != '-') {
      argv[files++] = argv[i];
    } else if (!strcmp(argv[i], "--")) {
      only_files = 1;
    } else if (!strcmp(argv[i], "--help")) {
      fputs(usage, stdout);
      return 0;
    } else if (!strcmp(argv[i], "--raw") && i + 2 < argc) {
      o.width = parse(argv[i + 1], FTBNN_IMAGE_LARGEST);
      o.height = parse(argv[i + 2], FTBNN_IMAGE_LARGEST);
      i += 2;
      if (!o.width || !o.height) return refuse(MISTAKE, "--raw", "width and height expected, 1 to 16384");
    } else if (!strcmp(argv[i], "--repeat") && i + 1 < argc) {
      o.repeats = parse(argv[++i], MOST_REPEATS);
      if (!o.repeats) return refuse(MISTAKE, "--repeat", "a number from 1 to 1000 expected");
    } else if (!strcmp(argv[i], "--top") && i + 1 < argc) {
      o.top = parse(argv[++i], INT_MAX);
      if (!o.top) return refuse(MISTAKE, "--top", "a number from 1 expected");
    } else if (!strcmp(argv[i], "--pixels") && i + 1 < argc) {
      o.output = argv[++i];
    } else {
      return refuse(MISTAKE, argv[i], "no option, or without its value; --help lists them");
    }
  }
  if (!files) return refuse(MISTAKE, "classify", "a FILE expected; --help says more");
  if (o.output && files > 1) return refuse(MISTAKE, "--pixels", "goes with a single FILE");

  ftbnn_net *net;
  if (ftbnn_init(&memory, sizeof memory, &net) != FTBNN_OK) return refuse(MISTAKE, "ftbnn_init", "failed");
  int worst = 0;
  for (int i = 0; i < files && worst < MISTAKE; i++) {
    int status = classify(net, argv[i], &o, files > 1);
    if (status > worst) worst = status;
  }
  return worst;
}

#include "ftbnn_image.h"

/* Columns that are summed at once. */
enum { COLUMNS = 64, MOST_CHANNELS = 3 };

/* Where reading a file has got to. */
typedef struct {
  const uint8_t *bytes;
  size_t length, position;
} reader;

static int is_side(int length) { return length >= 1 && length <= FTBNN_IMAGE_LARGEST; }

static int is_space(uint8_t c) { return c == ' ' || (c >= 9 && c <= 13); }

/* Reads white space, comments and a number from 1 to `most`; returns 0 where there is no such number. */
static int read_number(reader *r, int most) {
  int spaces = 0, digits = 0, number = 0;
  for (; r->position < r->length; r->position++) {
    if (r->bytes[r->position] == '#') {
      while (r->position < r->length && r->bytes[r->position] != '\n') r->position++;
      if (r->position == r->length) return 0;
    } else if (!is_space(r->bytes[r->position])) {
      break;
    }
    spaces++;
  }
  for (; r->position < r->length; r->position++, digits++) {
    uint8_t c = r->bytes[r->position];
    if (c < '0' || c > '9') break;
    number = 10 * number + (c - '0');
    if (number > most) return 0;
  }
  return spaces && digits ? number : 0;
}

int ftbnn_read_raw(const uint8_t *bytes, size_t length, int width, int height, int channels,
                   ftbnn_image *image) {
  if (!bytes || !image) return FTBNN_IMAGE_BAD;
  if (!is_side(width) || !is_side(height) || (channels != 1 && channels != 3)) return FTBNN_IMAGE_BAD;
  if (length != (size_t)width * (size_t)height * (size_t)channels) return FTBNN_IMAGE_BAD;
  *image = (ftbnn_image){width, height, channels, bytes};
  return 0;
}

int ftbnn_read_pnm(const uint8_t *bytes, size_t length, ftbnn_image *image) {
  reader r = {bytes, length, 2};
  if (!bytes || !image || length < 2 || bytes[0] != 'P' || (bytes[1] != '5' && bytes[1] != '6'))
    return FTBNN_IMAGE_BAD;
  int width = read_number(&r, FTBNN_IMAGE_LARGEST);
  int height = read_number(&r, FTBNN_IMAGE_LARGEST);
  int most = read_number(&r, 65535);
  if (!width || !height || most != 255) return FTBNN_IMAGE_BAD;
  if (r.position == length || !is_space(bytes[r.position])) return FTBNN_IMAGE_BAD;
  r.position++;
  return ftbnn_read_raw(bytes + r.position, length - r.position, width, height, bytes[1] == '6' ? 3 : 1,
                        image);
}

/* The input positions, from `first` to before `end`, of which an output position is a mean: a triangle of
 * weights around `center`, as wide as the image shrinks. With lengths in halves of an input's distance times
 * the output's size, all are whole numbers. */
typedef struct {
  int64_t center, step, width;
  int first, end;
  int64_t total; /* of the weights */
} span;

static int64_t height_of(const span *s, int i) {
  int64_t distance = s->step * i - s->center;
  return s->width - (distance < 0 ? -distance : distance);
}

static span find_span(int output, int size, int length, int antialias) {
  int64_t n = length, step = 2 * (int64_t)size;
  span s = {(2 * output + 1) * n - size, step, antialias && n > size ? 2 * n : step, 0, 0, 0};
  int64_t end = (s.center + s.width + step - 1) / step;
  if (s.center >= s.width) s.first = (int)((s.center - s.width) / step) + 1;
  s.end = end < n ? (int)end : length;
  for (int i = s.first; i < s.end; i++) s.total += height_of(&s, i);
  return s;
}

/* The weights so far, and their share of all of them, which is 2^16. */
typedef struct {
  int64_t sum;
  uint32_t share;
} running;

/* Returns the weight of position `i` after those of all before it: what the share grows by. */
static uint32_t next_weight(const span *s, int i, running *r) {
  uint32_t before = r->share;
  r->sum += height_of(s, i);
  r->share = (uint32_t)((131072 * r->sum + s->total) / (2 * s->total));
  return r->share - before;
}

/* Writes one pixel: the sum of each column, then of these. Rows of `row` bytes start at `top`. */
static void resample(const uint8_t *top, size_t row, int channels, const span *down, const span *across,
                     uint8_t *pixel) {
  uint64_t totals[MOST_CHANNELS] = {0};
  running rightward = {0, 0};
  for (int left = across->first; left < across->end; left += COLUMNS) {
    int columns = across->end - left < COLUMNS ? across->end - left : COLUMNS;
    uint32_t sums[COLUMNS * MOST_CHANNELS] = {0};
    running downward = {0, 0};
    for (int i = down->first; i < down->end; i++) {
      uint32_t weight = next_weight(down, i, &downward);
      const uint8_t *p = top + (size_t)i * row + (size_t)left * (size_t)channels;
      for (int k = 0; k < columns * channels; k++) sums[k] += weight * p[k];
    }
    for (int j = 0; j < columns; j++) {
      uint64_t weight = next_weight(across, left + j, &rightward);
      for (int c = 0; c < channels; c++) totals[c] += weight * sums[j * channels + c];
    }
  }
  for (int c = 0; c < channels; c++) pixel[c] = (uint8_t)((totals[c] + ((uint64_t)1 << 31)) >> 32);
}

int ftbnn_preprocess(const ftbnn_image *image, const ftbnn_preprocessing *how, uint8_t *pixels) {
  if (!image || !image->pixels || !how || !pixels) return FTBNN_IMAGE_BAD;
  int width = image->width, height = image->height, channels = image->channels;
  if (!is_side(width) || !is_side(height) || !is_side(how->size)) return FTBNN_IMAGE_BAD;
  if (channels < 1 || channels > MOST_CHANNELS || how->crop < 0 || how->crop > 256) return FTBNN_IMAGE_BAD;
  if (channels != how->channels) return FTBNN_IMAGE_CHANNELS;
  const uint8_t *corner = image->pixels;
  size_t row = (size_t)width * (size_t)channels;
  if (how->crop) {
    int side = (2 * how->crop * (width < height ? width : height) + 255) / 512;
    if (side < 1) side = 1;
    corner += (size_t)((height - side) / 2) * row + (size_t)((width - side) / 2) * (size_t)channels;
    width = height = side;
  }
  for (int y = 0; y < how->size; y++) {
    span down = find_span(y, how->size, height, how->antialias);
    for (int x = 0; x < how->size; x++, pixels += channels) {
      span across = find_span(x, how->size, width, how->antialias);
      resample(corner, row, channels, &down, &across, pixels);
    }
  }
  return 0;
}

#include "ftbnn_image.h"

#include <math.h>
#include <string.h>

/* Where reading a file has got to. */
typedef struct {
  const uint8_t *bytes;
  size_t length, position;
} reader;

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
  if (width < 1 || width > FTBNN_IMAGE_LARGEST || height < 1 || height > FTBNN_IMAGE_LARGEST ||
      (channels != 1 && channels != 3))
    return FTBNN_IMAGE_BAD;
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

/* Weight of input position `i` at output position `o`: a triangle, as wide as the image shrinks. */
static float weight(int i, int o, float scale) {
  float distance = fabsf(((float)o + 0.5f) * scale - ((float)i + 0.5f));
  float width = scale > 1 ? scale : 1;
  return distance < width ? 1 - distance / width : 0;
}

/* The first input position with a weight, and the one after the last. */
static void find_span(int o, float scale, int length, int *first, int *end) {
  float center = ((float)o + 0.5f) * scale - 0.5f, width = scale > 1 ? scale : 1;
  int low = (int)floorf(center - width), high = (int)ceilf(center + width) + 1;
  *first = low < 0 ? 0 : low;
  *end = high > length ? length : high;
}

int ftbnn_resize(const ftbnn_image *image, int size, int channels, uint8_t *pixels) {
  if (!image || !image->pixels || !pixels || size < 1) return FTBNN_IMAGE_BAD;
  if (image->channels != channels) return FTBNN_IMAGE_CHANNELS;
  if (image->width == size && image->height == size) {
    memcpy(pixels, image->pixels, (size_t)size * (size_t)size * (size_t)channels);
    return 0;
  }
  float down = (float)image->height / (float)size, across = (float)image->width / (float)size;
  for (int y = 0; y < size; y++) {
    int top, bottom;
    find_span(y, down, image->height, &top, &bottom);
    for (int x = 0; x < size; x++) {
      int left, right;
      find_span(x, across, image->width, &left, &right);
      for (int c = 0; c < channels; c++) {
        float sum = 0, weights = 0;
        for (int i = top; i < bottom; i++) {
          for (int j = left; j < right; j++) {
            float w = weight(i, y, down) * weight(j, x, across);
            size_t at = ((size_t)i * (size_t)image->width + (size_t)j) * (size_t)channels + (size_t)c;
            sum += w * (float)image->pixels[at];
            weights += w;
          }
        }
        *pixels++ = (uint8_t)(sum / weights + 0.5f);
      }
    }
  }
  return 0;
}

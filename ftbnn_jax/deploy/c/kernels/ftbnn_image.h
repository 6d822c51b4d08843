/* Image files, and what becomes of an image before it enters the network, which needs none of this itself.
 *
 *     ftbnn_image image = {width, height, 3, bytes};
 *     const ftbnn_preprocessing how = {FTBNN_IMAGE_SIZE, FTBNN_CHANNELS, FTBNN_CROP, FTBNN_ANTIALIAS};
 *     uint8_t pixels[FTBNN_PIXEL_BYTES];
 *     if (ftbnn_preprocess(&image, &how, pixels) != 0) ...
 *
 * Nothing is allocated, nothing is kept, and any number of threads may call everything at once.
 */
#ifndef FTBNN_IMAGE_H
#define FTBNN_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  FTBNN_IMAGE_BAD = -10,      /* no such image, or one of no possible size */
  FTBNN_IMAGE_CHANNELS = -11, /* the image's channels are not the network's */
  FTBNN_IMAGE_LARGEST = 16384 /* pixels of a side, at most */
};

/* Pixels [height][width][channels], 8 bits each, row after row without gaps; of an image that was read, they lie in
 * the file's bytes, which must stay. */
typedef struct {
  int width, height, channels;
  const uint8_t *pixels;
} ftbnn_image;

/* Reads a binary PPM (P6) or PGM (P5) of 8 bits. Returns 0; FTBNN_IMAGE_BAD where it is none, is of no
 * possible size, or its length is not the one that its head states. */
int ftbnn_read_pnm(const uint8_t *bytes, size_t length, ftbnn_image *image);

/* Reads raw pixels of a known size; FTBNN_IMAGE_BAD where the length is another. */
int ftbnn_read_raw(const uint8_t *bytes, size_t length, int width, int height, int channels,
                   ftbnn_image *image);

/* How an image becomes a network's pixels, [size][size][channels]; model.h has the values of its own. */
typedef struct {
  int size, channels;
  int crop;      /* 256ths of the shorter side, cut out of the centre as a square; 0: the whole image */
  int antialias; /* whether a pixel is a mean of all that it covers where the image shrinks */
} ftbnn_preprocessing;

/* Writes the pixels: the image or its centre, resized bilinearly. All in whole numbers, so that they are the
 * ones that the network was evaluated with, to the last bit. Sides are 1 to FTBNN_IMAGE_LARGEST, all of them.
 * Returns 0, FTBNN_IMAGE_CHANNELS where the image's channels are not the network's, or FTBNN_IMAGE_BAD. */
int ftbnn_preprocess(const ftbnn_image *image, const ftbnn_preprocessing *how, uint8_t *pixels);

#ifdef __cplusplus
}
#endif

#endif

/* Image files, and bringing them to the network's size. For the command line; the network needs none of it. */
#ifndef FTBNN_IMAGE_H
#define FTBNN_IMAGE_H

#include <stddef.h>
#include <stdint.h>

enum { FTBNN_IMAGE_BAD = -10, FTBNN_IMAGE_CHANNELS = -11, FTBNN_IMAGE_LARGEST = 16384 };

/* Pixels [height][width][channels], 8 bits each; they lie in the file's bytes. */
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

/* Resizes to size x size, bilinearly, averaging where the image shrinks. Returns 0, or
 * FTBNN_IMAGE_CHANNELS where `channels` are not the image's, or FTBNN_IMAGE_BAD. */
int ftbnn_resize(const ftbnn_image *image, int size, int channels, uint8_t *pixels);

#endif

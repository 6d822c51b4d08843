/* Binary convolution on packed signs, of any geometry, in groups. The same in both arithmetics. A product of
 * rows with a matrix is a convolution with a kernel of one position.
 *
 * With `a` and `w` the sign bits of a window and of a kernel, `m` set where the window holds no 0, and
 * K the bits in a window, a sum is
 *
 *     XNOR     K - 2 count(a ^ w)                  inputs -1 and +1
 *     AND      2 count(a & w) - count(a)           inputs 0 and +1
 *     TERNARY  count(m) - 2 count(m & (a ^ w))     inputs -1, 0 and +1
 *
 * Padding is 0, so XNOR becomes TERNARY at the border, and TERNARY is XNOR where no input is 0.
 */
#ifndef FTBNN_BINARY_H
#define FTBNN_BINARY_H

#include <stddef.h>
#include <stdint.h>

enum { FTBNN_XNOR, FTBNN_AND, FTBNN_TERNARY };

/* Output positions convolved at once, elements that may be written or read past the last one, and output
 * channels whose weights lie together, so that a processor's cache has them one after another. */
enum { FTBNN_BLOCK = 4, FTBNN_SLACK = 16, FTBNN_TILE = 32 };

/* Channels of one group: those that it reads, and those that it gives. */
typedef struct {
  int in_features, features;
} ftbnn_group;

typedef struct {
  int height, width;         /* of the input */
  int out_height, out_width; /* of the output */
  int kernel_height, kernel_width;
  int stride_y, stride_x, dilation_y, dilation_x;
  int top, left;             /* positions of padding above and to the left of the input */
  int features;              /* channels that it gives */
  int form;                  /* FTBNN_XNOR, FTBNN_AND or FTBNN_TERNARY */
  int groups;
  const ftbnn_group *group;
  const uint32_t *weights;   /* group after group, and in a group one FTBNN_TILE of its output channels, or
                                what is left of them, after another: [words of a window][output channels] */
} ftbnn_conv;

/* The signs of an activation, two bits a value: [height * width + 1][words of a position] each. In every
 * position each group begins with a new word; the first channel is the lowest bit; spare bits are 0. The
 * position behind the last one is what lies outside, without a bit. Only TERNARY needs `nonzero`. */
typedef struct {
  uint32_t *positive, *nonzero;
} ftbnn_signs;

/* Words of one position. */
int ftbnn_position_words(const ftbnn_conv *conv);

/* Convolves `count` output positions, 1 to FTBNN_BLOCK, from number `first` on (row by row, the first call
 * for new signs from 0 on).
 *
 * windows: scratch of 2 * (ftbnn_position_words + FTBNN_BLOCK * (positions of the kernel) +
 *          FTBNN_BLOCK * (words of the widest window)) + (height of the input) words, left alone between calls.
 * sums:    [FTBNN_BLOCK][features + FTBNN_SLACK]; those past `features` are meaningless. */
void ftbnn_convolve(const ftbnn_conv *conv, ftbnn_signs signs, int first, int count, uint32_t *windows,
                    int32_t *sums);

static inline int ftbnn_words(int bits) { return (bits + 31) / 32; }

static inline int ftbnn_smaller(int a, int b) { return a < b ? a : b; }

#endif

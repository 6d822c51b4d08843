/* The layers of a network, in the arithmetic of ftbnn_arithmetic.h: single precision or fixed point. */
#ifndef FTBNN_LAYERS_H
#define FTBNN_LAYERS_H

#include "ftbnn_binary.h"

/* Output channels of a real convolution that are summed at once. */
enum { FTBNN_CHUNK = 32 };

#include "ftbnn_arithmetic.h"

enum { FTBNN_NONE, FTBNN_RELU, FTBNN_PRELU, FTBNN_FPRELU };

/* FTBNN_POOLED_CONV: 2x2 mean, real 1x1 convolution, batch norm. FTBNN_DUPLICATE: 3x3 mean, twice along
 * channels; the binary convolution reads its input twice along channels as well. */
typedef enum { FTBNN_NO_SHORTCUT, FTBNN_IDENTITY, FTBNN_POOLED_CONV, FTBNN_DUPLICATE } ftbnn_shortcut;

/* Real convolution with zero padding on [size][size][channels] pixels, batch norm, activation. */
typedef struct {
  int size, channels, kernel, stride, features;
  const ftbnn_weight *pixels;  /* [channels][256]: each pixel value in the network's scale */
  const ftbnn_weight *weights; /* [kernel][kernel][channels][features] */
  int shift;                   /* of the sums, in fixed point */
  ftbnn_norm norm;
  ftbnn_activation activation;
} ftbnn_stem;

/* Real 1x1 convolution and batch norm of a shortcut. */
typedef struct {
  const ftbnn_weight *weights; /* [in_features][features] */
  int shift;                   /* in fixed point */
  ftbnn_norm norm;
} ftbnn_shortcut_conv;

/* act(norm(binary convolution) + shortcut). */
typedef struct {
  ftbnn_conv conv;
  ftbnn_norm norm;
  ftbnn_activation activation;
  ftbnn_shortcut shortcut;
  int in_features; /* of the block: half of the convolution's behind FTBNN_DUPLICATE */
  ftbnn_shortcut_conv shortcut_conv;
} ftbnn_block;

/* The network's, in model.c. */
extern const ftbnn_block ftbnn_blocks[FTBNN_BLOCKS];

/* Mean over all positions, then a fully connected layer: a scale for each class, and its bias. */
typedef struct {
  int positions, features, classes;
  const int16_t *weights; /* [features][classes] */
  int shift;              /* of the sums, in fixed point */
  ftbnn_norm norm;
} ftbnn_head;

typedef struct {
  uint32_t *windows;
  int32_t *sums;
  ftbnn_value *values;
  ftbnn_observer observe; /* or null */
  void *context;
  uint32_t saturated; /* whether a number left its range; in fixed point only */
} ftbnn_scratch;

/* Writes [size'][size'][features] to `y`. */
void ftbnn_run_stem(const ftbnn_stem *stem, const uint8_t *pixels, ftbnn_value *y, ftbnn_scratch *scratch);

/* 3x3 maximum, stride 2, padding 1; `y` may be `x`. */
void ftbnn_max_pool(int size, int channels, const ftbnn_value *x, ftbnn_value *y, ftbnn_scratch *scratch);

/* Writes the signs of `x`, [size][size][in_features], for the convolution of `block`. */
void ftbnn_pack(const ftbnn_block *block, const ftbnn_value *x, ftbnn_signs signs, ftbnn_scratch *scratch);

/* Runs block number `index` on `x` and on its signs. `y` may be `x` behind FTBNN_IDENTITY. Writes signs for
 * the next block, if there is one, to `next_signs`. */
void ftbnn_run_block(const ftbnn_block *block, int index, const ftbnn_value *x, ftbnn_signs signs,
                     ftbnn_value *y, const ftbnn_block *next, ftbnn_signs next_signs,
                     ftbnn_scratch *scratch);

void ftbnn_run_head(const ftbnn_head *head, const ftbnn_value *x, ftbnn_value *logits,
                    ftbnn_scratch *scratch);

#endif

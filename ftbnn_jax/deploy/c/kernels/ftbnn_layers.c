#include "ftbnn_layers.h"

const ftbnn_value *ftbnn_read_rows(const ftbnn_real_conv *conv, const ftbnn_value *x, const uint8_t *pixels,
                                   const ftbnn_weight *table, int y, ftbnn_value *rows, size_t *step) {
  const size_t channels = (size_t)conv->channels, length = (size_t)conv->width * channels;
  const size_t row = (size_t)conv->row_width * channels;
  const int first = y * conv->stride_y - conv->top, span = (conv->kernel_height - 1) * conv->dilation_y + 1;
  if (!pixels && conv->row_width == conv->width && first >= 0 && first + span <= conv->height) {
    *step = (size_t)conv->dilation_y * length;
    return x + (size_t)first * length;
  }
  *step = row;
  /* What the windows above have read already moves up. */
  int kept = y && conv->dilation_y == 1 && conv->kernel_height > conv->stride_y
                 ? conv->kernel_height - conv->stride_y : 0;
  if (!pixels && conv->row_width == conv->width) kept = 0; /* they may have been where they lie */
  memmove(rows, rows + (size_t)(conv->kernel_height - kept) * row, (size_t)kept * row * sizeof *rows);
  for (int k = kept; k < conv->kernel_height; k++) {
    const int at = first + k * conv->dilation_y;
    ftbnn_value *out = rows + (size_t)k * row, *inner = out + (size_t)conv->left * channels;
    memset(out, 0, row * sizeof *out);
    if (at < 0 || at >= conv->height) continue;
    if (pixels) {
      const uint8_t *pixel = pixels + (size_t)at * length;
      for (int i = 0; i < conv->width; i++) {
        for (int c = 0; c < conv->channels; c++) *inner++ = table[256 * c + *pixel++];
      }
    } else {
      memcpy(inner, x + (size_t)at * length, length * sizeof *inner);
    }
  }
  return rows;
}

void ftbnn_convolve_real(const ftbnn_real_conv *conv, const ftbnn_value *rows, size_t step, int left, int count,
                         ftbnn_value *y, ftbnn_scratch *scratch) {
  const int inputs = conv->channels / conv->groups, outputs = conv->features / conv->groups;
  /* Neighbouring positions of one row are one run of inputs. */
  const int joined = conv->groups == 1 && conv->dilation_x == 1;
  const ftbnn_window window = {conv->kernel_height, joined ? 1 : conv->kernel_width,
                               joined ? conv->kernel_width * inputs : inputs, step,
                               (size_t)(conv->dilation_x * conv->channels)};
  for (int group = 0; group < conv->groups; group++) {
    const ftbnn_value *x[FTBNN_BLOCK];
    for (int p = 0; p < FTBNN_BLOCK; p++)
      x[p] = rows + (left + ftbnn_smaller(p, count - 1)) * conv->stride_x * conv->channels + group * inputs;
    for (int first = 0; first < outputs; first += FTBNN_CHUNK) {
      const int chunk = ftbnn_smaller(FTBNN_CHUNK, outputs - first), output = group * outputs + first;
      ftbnn_sum sums[FTBNN_BLOCK][FTBNN_CHUNK];
      ftbnn_accumulate(x, window, conv->weights + output, conv->features, chunk, sums);
      for (int p = 0; p < count; p++) {
        for (int o = 0; o < chunk; o++)
          y[p * conv->features + output + o] = ftbnn_from_sum(sums[p][o], conv->shift, &scratch->saturated);
      }
    }
  }
}

void ftbnn_pack(const ftbnn_conv *conv, const ftbnn_value *x, ftbnn_signs signs, int position) {
  const size_t start = (size_t)position * (size_t)ftbnn_position_words(conv);
  uint32_t *positive = signs.positive + start;
  uint32_t *nonzero = conv->form == FTBNN_TERNARY ? signs.nonzero + start : 0;
  for (int g = 0; g < conv->groups; g++) {
    const int channels = conv->group[g].in_features;
    for (int first = 0; first < channels; first += 32) {
      uint32_t above, below;
      ftbnn_sign_bits(x + first, ftbnn_smaller(32, channels - first), &above, &below);
      *positive++ = above;
      if (nonzero) *nonzero++ = above | below;
    }
    x += channels;
  }
}

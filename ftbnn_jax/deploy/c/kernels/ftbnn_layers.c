#include "ftbnn_layers.h"

/* Channels that are averaged at once. */
enum { MANY = 64 };

static int smaller(int a, int b) { return a < b ? a : b; }

static void activate(const ftbnn_activation *activation, int n, ftbnn_value *y, ftbnn_scratch *scratch) {
  switch (activation->kind) {
    case FTBNN_RELU:
      for (int i = 0; i < n; i++) y[i] = y[i] > 0 ? y[i] : 0;
      break;
    case FTBNN_PRELU:
      ftbnn_prelu(activation, n, y, &scratch->saturated);
      break;
    case FTBNN_FPRELU:
      ftbnn_fprelu(activation, n, y, &scratch->saturated);
      break;
    default:
      break;
  }
}

/* Packs one position of a block's input, which a duplicating block reads twice. */
static void pack_position(const ftbnn_block *block, const ftbnn_value *x, ftbnn_signs signs,
                          size_t position, ftbnn_value *copy) {
  const ftbnn_conv *conv = &block->conv;
  size_t start = position * (size_t)ftbnn_position_words(conv);
  size_t bytes = (size_t)block->in_features * sizeof *x;
  uint32_t *positive = signs.positive + start;
  uint32_t *nonzero = conv->form == FTBNN_TERNARY ? signs.nonzero + start : 0;
  memcpy(copy, x, bytes);
  if (block->shortcut == FTBNN_DUPLICATE) memcpy(copy + block->in_features, x, bytes);
  for (int g = 0; g < conv->groups; g++) {
    int channels = ftbnn_group_size(conv->in_features, conv->groups, g);
    for (int first = 0; first < channels; first += 32) {
      uint32_t above, below;
      ftbnn_sign_bits(copy + first, smaller(32, channels - first), &above, &below);
      *positive++ = above;
      if (nonzero) *nonzero++ = above | below;
    }
    copy += channels;
  }
}

void ftbnn_pack(const ftbnn_block *block, const ftbnn_value *x, ftbnn_signs signs, ftbnn_scratch *scratch) {
  size_t positions = (size_t)block->conv.height * (size_t)block->conv.width;
  for (size_t p = 0; p < positions; p++)
    pack_position(block, x + p * (size_t)block->in_features, signs, p, scratch->values);
}

/* Brings one row of pixels to the network's scale, with `padding` zeros on both sides. */
static void read_row(const ftbnn_stem *stem, const uint8_t *pixels, int y, int padding, ftbnn_value *row) {
  size_t edge = (size_t)padding * (size_t)stem->channels;
  size_t length = (size_t)stem->size * (size_t)stem->channels;
  memset(row, 0, (2 * edge + length) * sizeof *row);
  if (y < 0 || y >= stem->size) return;
  pixels += (size_t)y * length;
  row += edge;
  for (int x = 0; x < stem->size; x++) {
    for (int c = 0; c < stem->channels; c++) *row++ = stem->pixels[256 * c + *pixels++];
  }
}

void ftbnn_run_stem(const ftbnn_stem *stem, const uint8_t *pixels, ftbnn_value *y, ftbnn_scratch *scratch) {
  int padding = stem->kernel / 2, size = ftbnn_output_size(stem->size, stem->stride);
  size_t row_length = (size_t)(stem->size + 2 * padding) * (size_t)stem->channels;
  int inputs = stem->kernel * stem->channels, features = stem->features;
  ftbnn_value *rows = scratch->values;
  for (int top = 0; top < size; top++) {
    /* What the window above has read already moves up. */
    int kept = top && stem->kernel > stem->stride ? stem->kernel - stem->stride : 0;
    memmove(rows, rows + (size_t)(stem->kernel - kept) * row_length,
            (size_t)kept * row_length * sizeof *rows);
    for (int k = kept; k < stem->kernel; k++)
      read_row(stem, pixels, top * stem->stride - padding + k, padding, rows + (size_t)k * row_length);
    for (int left = 0; left < size; left += FTBNN_BLOCK) {
      int count = smaller(FTBNN_BLOCK, size - left);
      for (int first = 0; first < features; first += FTBNN_CHUNK) {
        int chunk = smaller(FTBNN_CHUNK, features - first);
        ftbnn_sum sums[FTBNN_BLOCK][FTBNN_CHUNK] = {{0}};
        for (int k = 0; k < stem->kernel; k++) {
          const ftbnn_weight *weights = stem->weights + (size_t)(k * inputs) * (size_t)features + first;
          const ftbnn_value *x[FTBNN_BLOCK];
          for (int p = 0; p < FTBNN_BLOCK; p++)
            x[p] = rows + (size_t)k * row_length +
                   (left + smaller(p, count - 1)) * stem->stride * stem->channels;
          ftbnn_accumulate(x, inputs, weights, features, chunk, sums);
        }
        for (int p = 0; p < count; p++) {
          for (int o = 0; o < chunk; o++)
            y[p * features + first + o] = ftbnn_from_sum(sums[p][o], stem->shift, &scratch->saturated);
        }
      }
      for (int p = 0; p < count; p++, y += features) {
        ftbnn_normalize(&stem->norm, features, y, &scratch->saturated);
        activate(&stem->activation, features, y, scratch);
      }
    }
  }
}

void ftbnn_max_pool(int size, int channels, const ftbnn_value *x, ftbnn_value *y, ftbnn_scratch *scratch) {
  int out = ftbnn_output_size(size, 2);
  size_t bytes = (size_t)channels * sizeof *y;
  ftbnn_value *restrict largest = scratch->values;
  for (int top = 0; top < out; top++) {
    for (int left = 0; left < out; left++, y += channels) {
      const ftbnn_value *middle = x + ((size_t)(2 * top) * (size_t)size + (size_t)(2 * left)) * (size_t)channels;
      memcpy(largest, middle, bytes);
      for (int i = -1; i <= 1; i++) {
        for (int j = -1; j <= 1; j++) {
          if (2 * top + i < 0 || 2 * top + i >= size || 2 * left + j < 0 || 2 * left + j >= size) continue;
          const ftbnn_value *restrict value = middle + (i * size + j) * channels;
          for (int c = 0; c < channels; c++) largest[c] = value[c] > largest[c] ? value[c] : largest[c];
        }
      }
      /* Where y is x, this overwrites no input that is still to be read. */
      memcpy(y, largest, bytes);
    }
  }
}

/* Means of a window of `window` x `window` values of `x`, [size][size][channels]: the sum of those that
 * exist divided by their number or, with `whole`, by the number of the window's. */
static void average(const ftbnn_value *x, int size, int channels, int top, int left, int window, int whole,
                    ftbnn_value *means) {
  for (int first = 0; first < channels; first += MANY) {
    ftbnn_sum sums[MANY] = {0};
    int found = 0, many = smaller(MANY, channels - first);
    for (int i = top; i < top + window; i++) {
      for (int j = left; j < left + window; j++) {
        if (i < 0 || i >= size || j < 0 || j >= size) continue;
        const ftbnn_value *value = x + ((size_t)i * (size_t)size + (size_t)j) * (size_t)channels + first;
        for (int c = 0; c < many; c++) sums[c] += value[c];
        found++;
      }
    }
    if (whole) found = window * window;
    for (int c = 0; c < many; c++) means[first + c] = ftbnn_mean(sums[c], found);
  }
}

/* Real 1x1 convolution and batch norm of `count` positions, [count][in_features] to [count][features]. */
static void run_shortcut_conv(const ftbnn_block *block, const ftbnn_value *means, int count,
                              ftbnn_value *shortcuts, ftbnn_scratch *scratch) {
  const ftbnn_shortcut_conv *conv = &block->shortcut_conv;
  int features = block->conv.features;
  const ftbnn_value *x[FTBNN_BLOCK];
  for (int p = 0; p < FTBNN_BLOCK; p++) x[p] = means + smaller(p, count - 1) * block->in_features;
  for (int first = 0; first < features; first += FTBNN_CHUNK) {
    int chunk = smaller(FTBNN_CHUNK, features - first);
    ftbnn_sum sums[FTBNN_BLOCK][FTBNN_CHUNK] = {{0}};
    ftbnn_accumulate(x, block->in_features, conv->weights + first, features, chunk, sums);
    for (int p = 0; p < count; p++) {
      for (int o = 0; o < chunk; o++)
        shortcuts[p * features + first + o] = ftbnn_from_sum(sums[p][o], conv->shift, &scratch->saturated);
    }
  }
  for (int p = 0; p < count; p++)
    ftbnn_normalize(&conv->norm, features, shortcuts + p * features, &scratch->saturated);
}

/* Shortcuts of `count` output positions from number `first` on, [count][features]. */
static void find_shortcuts(const ftbnn_block *block, const ftbnn_value *x, int first, int count,
                           ftbnn_value *shortcuts, ftbnn_value *means, ftbnn_scratch *scratch) {
  const int size = block->conv.width, features = block->conv.features, in = block->in_features;
  const int width = ftbnn_output_size(size, block->conv.stride);
  if (block->shortcut == FTBNN_IDENTITY) {
    memcpy(shortcuts, x + (size_t)first * (size_t)features, (size_t)(count * features) * sizeof *x);
    return;
  }
  for (int p = 0; p < count; p++) {
    int top = (first + p) / width * block->conv.stride, left = (first + p) % width * block->conv.stride;
    ftbnn_value *shortcut = shortcuts + p * features;
    if (block->shortcut == FTBNN_DUPLICATE) {
      average(x, size, in, top - 1, left - 1, 3, 1, shortcut);
      memcpy(shortcut + in, shortcut, (size_t)in * sizeof *x);
    } else {
      average(x, size, in, top, left, 2, 0, means + p * in);
    }
  }
  if (block->shortcut == FTBNN_POOLED_CONV) run_shortcut_conv(block, means, count, shortcuts, scratch);
}

void ftbnn_run_block(const ftbnn_block *block, int index, const ftbnn_value *x, ftbnn_signs signs,
                     ftbnn_value *y, const ftbnn_block *next, ftbnn_signs next_signs,
                     ftbnn_scratch *scratch) {
  const ftbnn_conv *conv = &block->conv;
  const int features = conv->features;
  const int positions =
      ftbnn_output_size(conv->height, conv->stride) * ftbnn_output_size(conv->width, conv->stride);
  ftbnn_value *shortcuts = scratch->values, *rest = shortcuts + FTBNN_BLOCK * features;
  for (int first = 0; first < positions; first += FTBNN_BLOCK) {
    int count = smaller(FTBNN_BLOCK, positions - first);
    ftbnn_convolve(conv, signs, first, count, scratch->windows, scratch->sums);
    if (block->shortcut != FTBNN_NO_SHORTCUT)
      find_shortcuts(block, x, first, count, shortcuts, rest, scratch);
    for (int p = 0; p < count; p++, y += features) {
      const int32_t *sums = scratch->sums + p * (features + FTBNN_SLACK);
      if (scratch->observe) scratch->observe(scratch->context, index, first + p, sums);
      for (int c = 0; c < features; c++) y[c] = (ftbnn_value)sums[c];
      ftbnn_normalize(&block->norm, features, y, &scratch->saturated);
      if (block->shortcut != FTBNN_NO_SHORTCUT)
        ftbnn_add_values(features, y, shortcuts + p * features, &scratch->saturated);
      activate(&block->activation, features, y, scratch);
      if (next) pack_position(next, y, next_signs, (size_t)(first + p), rest);
    }
  }
}

void ftbnn_run_head(const ftbnn_head *head, const ftbnn_value *x, ftbnn_value *logits,
                    ftbnn_scratch *scratch) {
  ftbnn_value *means = scratch->values;
  for (int first = 0; first < head->features; first += MANY) {
    ftbnn_sum sums[MANY] = {0};
    int many = smaller(MANY, head->features - first);
    for (int p = 0; p < head->positions; p++) {
      const ftbnn_value *value = x + (size_t)p * (size_t)head->features + first;
      for (int c = 0; c < many; c++) sums[c] += value[c];
    }
    for (int c = 0; c < many; c++) means[first + c] = ftbnn_mean(sums[c], head->positions);
  }
  for (int first = 0; first < head->classes; first += MANY) {
    ftbnn_sum sums[MANY] = {0};
    int many = smaller(MANY, head->classes - first);
    for (int c = 0; c < head->features; c++) {
      const int16_t *weights = head->weights + (size_t)c * (size_t)head->classes + first;
      for (int o = 0; o < many; o++) sums[o] += (ftbnn_sum)((ftbnn_sum)means[c] * weights[o]);
    }
    for (int o = 0; o < many; o++)
      logits[first + o] = ftbnn_from_sum(sums[o], head->shift, &scratch->saturated);
  }
  ftbnn_normalize(&head->norm, head->classes, logits, &scratch->saturated);
}

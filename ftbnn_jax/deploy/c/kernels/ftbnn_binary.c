#include "ftbnn_binary.h"

#include "ftbnn_vector.h"

enum { TAPS = 9 };

/* A group's window in words: for each tap, row by row, the whole words of its channels; then, without a
 * gap, what is left of every tap. */
typedef struct {
  int whole, rest; /* words, and bits beyond them, of one tap */
  int words;
} window_layout;

static window_layout layout_of(int channels) {
  window_layout layout = {channels / 32, channels % 32, 0};
  layout.words = TAPS * layout.whole + ftbnn_words(TAPS * layout.rest);
  return layout;
}

int ftbnn_position_words(const ftbnn_conv *conv) {
  int words = 0;
  for (int g = 0; g < conv->groups; g++)
    words += ftbnn_words(ftbnn_group_size(conv->in_features, conv->groups, g));
  return words;
}

/* Fills one position with the bits of all channels. */
static void fill_position(const ftbnn_conv *conv, uint32_t *words) {
  for (int g = 0; g < conv->groups; g++) {
    int left = ftbnn_group_size(conv->in_features, conv->groups, g);
    for (; left >= 32; left -= 32) *words++ = 0xffffffffu;
    if (left) *words++ = ((uint32_t)1 << left) - 1;
  }
}

/* Writes a window, every FTBNN_BLOCK-th word of `out`. */
static void gather(const uint32_t *const taps[TAPS], int offset, window_layout layout, uint32_t *out) {
  for (int t = 0; t < TAPS; t++) {
    for (int i = 0; i < layout.whole; i++, out += FTBNN_BLOCK) *out = taps[t][offset + i];
  }
  if (!layout.rest) return;
  uint64_t joined = 0;
  int held = 0;
  for (int t = 0; t < TAPS; t++) {
    joined |= (uint64_t)taps[t][offset + layout.whole] << held;
    held += layout.rest;
    if (held >= 32) {
      *out = (uint32_t)joined;
      out += FTBNN_BLOCK;
      joined >>= 32;
      held -= 32;
    }
  }
  if (held) *out = (uint32_t)joined;
}

/* How many bits are set in a window. */
static int bits_set(const uint32_t *window, int words) {
  int set = 0;
  for (int k = 0; k < words; k++) set += ftbnn_bits_set(window[k * FTBNN_BLOCK]);
  return set;
}

/* Counts bits for all output channels of a group at FTBNN_BLOCK positions. `form` is a constant wherever
 * this is called, so that every form gets a loop of its own. */
static inline void count_bits(int form, const uint32_t *weights, int words, int outputs,
                              const uint32_t *positive, const uint32_t *nonzero, int32_t *counts,
                              size_t stride) {
  for (int o = 0; o < outputs; o += FTBNN_LANES) {
    ftbnn_vector total[FTBNN_BLOCK], partial[FTBNN_BLOCK];
    for (int p = 0; p < FTBNN_BLOCK; p++) total[p] = ftbnn_zero();
    for (int start = 0; start < words; start += FTBNN_RUN) {
      int end = words - start < FTBNN_RUN ? words : start + FTBNN_RUN;
      for (int p = 0; p < FTBNN_BLOCK; p++) partial[p] = ftbnn_zero();
      for (int k = start; k < end; k++) {
        ftbnn_vector weight = ftbnn_load(weights + (size_t)k * (size_t)outputs + o);
        for (int p = 0; p < FTBNN_BLOCK; p++) {
          ftbnn_vector v = ftbnn_spread(positive[k * FTBNN_BLOCK + p]);
          v = form == FTBNN_AND ? ftbnn_and(weight, v) : ftbnn_xor(weight, v);
          if (form == FTBNN_TERNARY) v = ftbnn_and(v, ftbnn_spread(nonzero[k * FTBNN_BLOCK + p]));
          partial[p] = ftbnn_add_partial(partial[p], ftbnn_count(v));
        }
      }
      for (int p = 0; p < FTBNN_BLOCK; p++) total[p] = ftbnn_add(total[p], ftbnn_total(partial[p]));
    }
    for (int p = 0; p < FTBNN_BLOCK; p++) ftbnn_store(counts + (size_t)p * stride + o, total[p]);
  }
}

/* Points the taps of an output position at the words of the input, or at `outside`. With `same`, every
 * position of the input holds the same words. */
static void find_taps(const ftbnn_conv *conv, int position, int position_words, const uint32_t *input,
                      int same, const uint32_t *outside, const uint32_t *taps[TAPS]) {
  int width = ftbnn_output_size(conv->width, conv->stride);
  int top = position / width * conv->stride - 1, left = position % width * conv->stride - 1;
  for (int t = 0; t < TAPS; t++) {
    int y = top + t / 3, x = left + t % 3;
    if (y < 0 || y >= conv->height || x < 0 || x >= conv->width)
      taps[t] = outside;
    else
      taps[t] = same ? input : input + ((size_t)y * (size_t)conv->width + (size_t)x) * (size_t)position_words;
  }
}

void ftbnn_convolve(const ftbnn_conv *conv, ftbnn_signs signs, int first, int count, uint32_t *windows,
                    int32_t *sums) {
  const size_t stride = (size_t)conv->features + FTBNN_SLACK;
  const int position_words = ftbnn_position_words(conv);
  uint32_t *outside = windows, *full = outside + position_words, *positive = full + position_words;
  const uint32_t *taps[FTBNN_BLOCK][TAPS], *nonzero_taps[FTBNN_BLOCK][TAPS];
  memset(outside, 0, (size_t)position_words * sizeof *outside);
  fill_position(conv, full);
  for (int p = 0; p < FTBNN_BLOCK; p++) {
    int position = first + (p < count ? p : count - 1);
    find_taps(conv, position, position_words, signs.positive, 0, outside, taps[p]);
    if (conv->form == FTBNN_TERNARY)
      find_taps(conv, position, position_words, signs.nonzero, 0, outside, nonzero_taps[p]);
    else
      find_taps(conv, position, position_words, full, 1, outside, nonzero_taps[p]);
  }

  const uint32_t *weights = conv->weights;
  int offset = 0;
  for (int g = 0; g < conv->groups; g++) {
    int channels = ftbnn_group_size(conv->in_features, conv->groups, g);
    int outputs = ftbnn_group_size(conv->features, conv->groups, g);
    window_layout layout = layout_of(channels);
    uint32_t *nonzero = positive + layout.words * FTBNN_BLOCK;
    int own[FTBNN_BLOCK], zeros = 0;
    for (int p = 0; p < FTBNN_BLOCK; p++) {
      gather(taps[p], offset, layout, positive + p);
      if (conv->form != FTBNN_AND) gather(nonzero_taps[p], offset, layout, nonzero + p);
      own[p] = bits_set((conv->form == FTBNN_AND ? positive : nonzero) + p, layout.words);
      zeros |= own[p] != TAPS * channels;
    }
    int factor = -2;
    if (conv->form == FTBNN_AND) {
      factor = 2;
      count_bits(FTBNN_AND, weights, layout.words, outputs, positive, nonzero, sums, stride);
    } else if (zeros) {
      count_bits(FTBNN_TERNARY, weights, layout.words, outputs, positive, nonzero, sums, stride);
    } else {
      count_bits(FTBNN_XNOR, weights, layout.words, outputs, positive, nonzero, sums, stride);
    }
    for (int p = 0; p < FTBNN_BLOCK; p++) {
      int32_t *sum = sums + (size_t)p * stride;
      int base = factor > 0 ? -own[p] : own[p];
      for (int o = 0; o < outputs; o++) sum[o] = base + factor * sum[o];
    }
    weights += layout.words * outputs;
    offset += ftbnn_words(channels);
    sums += outputs;
  }
}

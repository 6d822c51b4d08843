#include "ftbnn_binary.h"

#include "ftbnn_vector.h"

/* A group's window in words: for each tap, row by row, the whole words of its channels; then, without a
 * gap, what is left of every tap. */
typedef struct {
  int taps;
  int whole, rest; /* words, and bits beyond them, of one tap */
  int words;
} window_layout;

static window_layout layout_of(int taps, int channels) {
  window_layout layout = {taps, channels / 32, channels % 32, 0};
  layout.words = taps * layout.whole + ftbnn_words(taps * layout.rest);
  return layout;
}

int ftbnn_position_words(const ftbnn_conv *conv) {
  int words = 0;
  for (int g = 0; g < conv->groups; g++) words += ftbnn_words(conv->group[g].in_features);
  return words;
}

/* Fills one position with the bits of all channels. */
static void fill_position(const ftbnn_conv *conv, uint32_t *words) {
  for (int g = 0; g < conv->groups; g++) {
    int left = conv->group[g].in_features;
    for (; left >= 32; left -= 32) *words++ = 0xffffffffu;
    if (left) *words++ = ((uint32_t)1 << left) - 1;
  }
}

/* Writes a window, every FTBNN_BLOCK-th word of `out`; taps: where each begins in `input`. */
static void gather(const uint32_t *input, const uint32_t *taps, window_layout layout, uint32_t *out) {
  for (int t = 0; t < layout.taps; t++) {
    for (int i = 0; i < layout.whole; i++, out += FTBNN_BLOCK) *out = input[taps[t] + (uint32_t)i];
  }
  if (!layout.rest) return;
  uint64_t joined = 0;
  int held = 0;
  for (int t = 0; t < layout.taps; t++) {
    joined |= (uint64_t)input[taps[t] + (uint32_t)layout.whole] << held;
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

#ifdef FTBNN_WORDS

#include "ftbnn_words.h"

static inline void count_bits(int form, const uint32_t *weights, int words, int bits, int outputs,
                              const uint32_t *positive, const uint32_t *nonzero, int32_t *counts,
                              size_t stride) {
  for (int p = 0; p < FTBNN_BLOCK; p++)
    ftbnn_count_words(form, weights, words, bits, outputs, positive + p, nonzero + p, counts + (size_t)p * stride);
}

#else

/* Counts bits for all output channels of a group at FTBNN_BLOCK positions. `form` is a constant wherever
 * this is called, so that every form gets a loop of its own. */
static inline void count_bits(int form, const uint32_t *weights, int words, int bits, int outputs,
                              const uint32_t *positive, const uint32_t *nonzero, int32_t *counts,
                              size_t stride) {
  (void)bits;
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

#endif

/* Finds where the words of an output position's taps begin, and in `masks` which of two positions they are:
 * one inside, the other outside. Returns how many lie inside. */
static int find_taps(const ftbnn_conv *conv, int position, uint32_t position_words, uint32_t outside,
                     uint32_t *taps, uint32_t *masks) {
  int found = 0, top = position / conv->out_width * conv->stride_y - conv->top;
  int left = position % conv->out_width * conv->stride_x - conv->left;
  for (int i = 0; i < conv->kernel_height; i++) {
    int y = top + i * conv->dilation_y;
    for (int j = 0; j < conv->kernel_width; j++) {
      int x = left + j * conv->dilation_x;
      int inside = y >= 0 && y < conv->height && x >= 0 && x < conv->width;
      *taps++ = inside ? (uint32_t)(y * conv->width + x) * position_words : outside;
      *masks++ = inside ? 0 : position_words;
      found += inside;
    }
  }
  return found;
}

void ftbnn_convolve(const ftbnn_conv *conv, ftbnn_signs signs, int first, int count, uint32_t *windows,
                    int32_t *sums) {
  const size_t stride = (size_t)conv->features + FTBNN_SLACK;
  const int kernel = conv->kernel_height * conv->kernel_width;
  const uint32_t position_words = (uint32_t)ftbnn_position_words(conv);
  const uint32_t outside = (uint32_t)(conv->height * conv->width) * position_words;
  /* In the place of `nonzero` where no input is 0: one position, and what lies outside. */
  uint32_t *full = windows, *taps = full + 2 * position_words, *masks = taps + FTBNN_BLOCK * kernel;
  uint32_t *positive = masks + FTBNN_BLOCK * kernel;
  int inside = 0;
  const int ternary = conv->form == FTBNN_TERNARY;
  if (first == 0) {
    memset(signs.positive + outside, 0, position_words * sizeof *full);
    if (ternary) memset(signs.nonzero + outside, 0, position_words * sizeof *full);
  }
  if (!ternary) {
    fill_position(conv, full);
    memset(full + position_words, 0, position_words * sizeof *full);
  }
  for (int p = 0; p < FTBNN_BLOCK; p++)
    inside += find_taps(conv, first + (p < count ? p : count - 1), position_words, outside, taps + p * kernel,
                        masks + p * kernel);

  /* Where no input is 0, only what lies outside is. */
  const uint32_t *weights = conv->weights, *mask = ternary ? signs.nonzero : full;
  const int masked = ternary || inside < FTBNN_BLOCK * kernel;
  uint32_t offset = 0;
  for (int g = 0; g < conv->groups; g++) {
    int channels = conv->group[g].in_features, outputs = conv->group[g].features;
    window_layout layout = layout_of(kernel, channels);
    uint32_t *nonzero = positive + layout.words * FTBNN_BLOCK;
    int own[FTBNN_BLOCK], zeros = 0;
    for (int p = 0; p < FTBNN_BLOCK; p++) gather(signs.positive + offset, taps + p * kernel, layout, positive + p);
    for (int p = 0; p < FTBNN_BLOCK; p++) {
      own[p] = kernel * channels;
      if (conv->form == FTBNN_AND) {
        own[p] = bits_set(positive + p, layout.words);
      } else if (masked) {
        gather(mask + offset, (ternary ? taps : masks) + p * kernel, layout, nonzero + p);
        own[p] = bits_set(nonzero + p, layout.words);
      }
      zeros |= own[p] != kernel * channels;
    }
    int factor = -2;
    if (conv->form == FTBNN_AND) {
      factor = 2;
      count_bits(FTBNN_AND, weights, layout.words, kernel * channels, outputs, positive, nonzero, sums, stride);
    } else if (zeros) {
      count_bits(FTBNN_TERNARY, weights, layout.words, kernel * channels, outputs, positive, nonzero, sums, stride);
    } else {
      count_bits(FTBNN_XNOR, weights, layout.words, kernel * channels, outputs, positive, nonzero, sums, stride);
    }
    for (int p = 0; p < FTBNN_BLOCK; p++) {
      int32_t *sum = sums + (size_t)p * stride;
      int base = factor > 0 ? -own[p] : own[p];
      for (int o = 0; o < outputs; o++) sum[o] = base + factor * sum[o];
    }
    weights += layout.words * outputs;
    offset += (uint32_t)ftbnn_words(channels);
    sums += outputs;
  }
}

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

/* As memcpy, for a few words. */
static inline uint32_t *copy(uint32_t *out, const uint32_t *in, int count) {
  int i = 0;
  for (; i + 2 <= count; i += 2) memcpy(out + i, in + i, 2 * sizeof *out);
  if (i < count) out[i] = in[i];
  return out + count;
}

/* Writes a window; taps: where each begins in `input`, of which `run` at a time lie one behind the other. */
static inline void gather(const uint32_t *input, const uint32_t *taps, int run, window_layout layout,
                          uint32_t *out) {
  for (int t = 0; t < layout.taps; t += run) out = copy(out, input + taps[t], run * layout.whole);
  if (!layout.rest) return;
  uint64_t joined = 0;
  int held = 0;
  for (int t = 0; t < layout.taps; t++) {
    joined |= (uint64_t)input[taps[t] + (uint32_t)layout.whole] << held;
    held += layout.rest;
    if (held >= 32) {
      *out++ = (uint32_t)joined;
      joined >>= 32;
      held -= 32;
    }
  }
  if (held) *out = (uint32_t)joined;
}

/* How many bits are set in a window. */
static int bits_set(const uint32_t *window, int words) {
  int set = 0;
  for (int k = 0; k < words; k++) set += ftbnn_bits_set(window[k]);
  return set;
}

#ifdef FTBNN_WORDS

#include "ftbnn_words.h"

static inline void count_bits(int form, const uint32_t *weights, int words, int bits, int outputs,
                              const uint32_t *positive, const uint32_t *nonzero, const int32_t *own, int32_t *sums,
                              size_t stride) {
  for (int p = 0; p < FTBNN_BLOCK; p++) {
    int32_t *sum = sums + (size_t)p * stride;
    ftbnn_count_words(form, weights, words, bits, outputs, positive + p * words, nonzero + p * words, sum);
    for (int o = 0; o < outputs; o++) sum[o] = form == FTBNN_AND ? 2 * sum[o] - own[p] : own[p] - 2 * sum[o];
  }
}

#else

/* Writes the sums of some output channels, of which `total` bits were counted; `own`: bits of the window. */
static inline void store_sums(int form, ftbnn_vector total, int32_t own, int32_t *sums) {
  ftbnn_store(sums, total);
  for (int i = 0; i < FTBNN_LANES; i++) sums[i] = form == FTBNN_AND ? 2 * sums[i] - own : own - 2 * sums[i];
}

/* The bits to be counted of one word of a window. */
static inline ftbnn_vector match(int form, ftbnn_vector weight, uint32_t positive, uint32_t nonzero) {
  ftbnn_vector v = ftbnn_spread(positive);
  v = form == FTBNN_AND ? ftbnn_and(weight, v) : ftbnn_xor(weight, v);
  return form == FTBNN_TERNARY ? ftbnn_and(v, ftbnn_spread(nonzero)) : v;
}

#ifdef FTBNN_CARRY_SAVE
/* A full adder: of three bits, the lower one of their sum becomes `*low`; returns the upper one. */
static inline ftbnn_vector add_bits(ftbnn_vector *low, ftbnn_vector a, ftbnn_vector b) {
  const ftbnn_vector differ = ftbnn_xor(a, b);
  const ftbnn_vector high = ftbnn_or(ftbnn_and(a, b), ftbnn_and(differ, *low));
  *low = ftbnn_xor(differ, *low);
  return high;
}
#endif

/* The sums of FTBNN_LANES output channels at FTBNN_SIDE positions; width: of the weights' tile. */
static inline void sum_lanes(int form, const uint32_t *weights, int width, int words, const uint32_t *positive,
                             const uint32_t *nonzero, const int32_t *own, int32_t *sums, size_t stride) {
  ftbnn_vector total[FTBNN_SIDE], partial[FTBNN_SIDE];
  int k = 0;
  for (int p = 0; p < FTBNN_SIDE; p++) total[p] = ftbnn_zero();
#ifdef FTBNN_CARRY_SAVE
  /* Counting takes longer than adding bit by bit: only what four words carry is counted, four times. */
  ftbnn_vector ones[FTBNN_SIDE], twos[FTBNN_SIDE];
  for (int p = 0; p < FTBNN_SIDE; p++) ones[p] = twos[p] = ftbnn_zero();
  while (k + 4 <= words) {
    const int end = ftbnn_smaller(k + 4 * FTBNN_RUN, words);
    for (int p = 0; p < FTBNN_SIDE; p++) partial[p] = ftbnn_zero();
    for (; k + 4 <= end; k += 4) {
      const uint32_t *at = weights + (size_t)k * (size_t)width;
      for (int p = 0; p < FTBNN_SIDE; p++) {
        const uint32_t *v = positive + p * words + k, *m = nonzero + p * words + k;
        ftbnn_vector a = match(form, ftbnn_load(at), v[0], m[0]), b = match(form, ftbnn_load(at + width), v[1], m[1]);
        const ftbnn_vector first = add_bits(&ones[p], a, b);
        a = match(form, ftbnn_load(at + 2 * width), v[2], m[2]);
        b = match(form, ftbnn_load(at + 3 * width), v[3], m[3]);
        const ftbnn_vector second = add_bits(&ones[p], a, b);
        partial[p] = ftbnn_add_partial(partial[p], ftbnn_count(add_bits(&twos[p], first, second)));
      }
    }
    for (int p = 0; p < FTBNN_SIDE; p++) total[p] = ftbnn_add(total[p], ftbnn_total(partial[p]));
  }
  for (int p = 0; p < FTBNN_SIDE; p++) {
    const ftbnn_vector two = ftbnn_count(twos[p]), twice = ftbnn_add(total[p], total[p]);
    partial[p] = ftbnn_add_partial(ftbnn_count(ones[p]), ftbnn_add_partial(two, two));
    total[p] = ftbnn_add(ftbnn_add(twice, twice), ftbnn_total(partial[p]));
  }
#endif
  while (k < words) {
    const int end = ftbnn_smaller(k + FTBNN_RUN, words);
    for (int p = 0; p < FTBNN_SIDE; p++) partial[p] = ftbnn_zero();
    for (; k < end; k++) {
      const ftbnn_vector weight = ftbnn_load(weights + (size_t)k * (size_t)width);
      for (int p = 0; p < FTBNN_SIDE; p++) {
        const ftbnn_vector v = match(form, weight, positive[p * words + k], nonzero[p * words + k]);
        partial[p] = ftbnn_add_partial(partial[p], ftbnn_count(v));
      }
    }
    for (int p = 0; p < FTBNN_SIDE; p++) total[p] = ftbnn_add(total[p], ftbnn_total(partial[p]));
  }
  for (int p = 0; p < FTBNN_SIDE; p++) store_sums(form, total[p], own[p], sums + (size_t)p * stride);
}

/* The sums of all output channels of a group at FTBNN_BLOCK positions. `form` is a constant wherever this is
 * called, so that every form gets a loop of its own. */
static inline void count_bits(int form, const uint32_t *weights, int words, int bits, int outputs,
                              const uint32_t *positive, const uint32_t *nonzero, const int32_t *own, int32_t *sums,
                              size_t stride) {
  (void)bits;
  for (int first = 0; first < outputs; first += FTBNN_TILE, weights += words * FTBNN_TILE) {
    const int width = ftbnn_smaller(FTBNN_TILE, outputs - first);
    for (int o = 0; o < width; o += FTBNN_LANES) {
      for (int p = 0; p < FTBNN_BLOCK; p += FTBNN_SIDE) {
        sum_lanes(form, weights + o, width, words, positive + p * words, nonzero + p * words, own + p,
                  sums + (size_t)p * stride + first + o, stride);
      }
    }
  }
}

#endif

/* Finds where the words of an output position's taps begin. Returns how many lie inside. */
static int find_taps(const ftbnn_conv *conv, int out_y, int out_x, uint32_t position_words, uint32_t outside,
                     uint32_t *taps) {
  const int top = out_y * conv->stride_y - conv->top, left = out_x * conv->stride_x - conv->left;
  const int below = top + (conv->kernel_height - 1) * conv->dilation_y;
  const int right = left + (conv->kernel_width - 1) * conv->dilation_x;
  if (top >= 0 && below < conv->height && left >= 0 && right < conv->width) {
    const uint32_t down = (uint32_t)(conv->width * conv->dilation_y) * position_words;
    const uint32_t step = (uint32_t)conv->dilation_x * position_words;
    uint32_t row = (uint32_t)(top * conv->width + left) * position_words;
    for (int i = 0; i < conv->kernel_height; i++, row += down) {
      uint32_t at = row;
      for (int j = 0; j < conv->kernel_width; j++, at += step) *taps++ = at;
    }
    return conv->kernel_height * conv->kernel_width;
  }
  int found = 0;
  for (int i = 0; i < conv->kernel_height; i++) {
    const int y = top + i * conv->dilation_y;
    for (int j = 0; j < conv->kernel_width; j++) {
      const int x = left + j * conv->dilation_x;
      const int inside = y >= 0 && y < conv->height && x >= 0 && x < conv->width;
      *taps++ = inside ? (uint32_t)(y * conv->width + x) * position_words : outside;
      found += inside;
    }
  }
  return found;
}

/* Notes which rows of the input hold a 0. */
static void find_zeros(const ftbnn_conv *conv, const uint32_t *nonzero, const uint32_t *full, int position_words,
                       uint32_t *zeros) {
  for (int y = 0; y < conv->height; y++) {
    uint32_t found = 0;
    for (int x = 0; x < conv->width; x++) {
      for (int i = 0; i < position_words; i++) found |= *nonzero++ ^ full[i];
    }
    zeros[y] = found;
  }
}

/* Whether a window's rows hold a 0. */
static int holds_zeros(const ftbnn_conv *conv, int out_y, const uint32_t *zeros) {
  uint32_t found = 0;
  for (int i = 0; i < conv->kernel_height; i++) {
    const int y = out_y * conv->stride_y - conv->top + i * conv->dilation_y;
    if (y >= 0 && y < conv->height) found |= zeros[y];
  }
  return found != 0;
}

void ftbnn_convolve(const ftbnn_conv *conv, ftbnn_signs signs, int first, int count, uint32_t *windows,
                    int32_t *sums) {
  const size_t stride = (size_t)conv->features + FTBNN_SLACK;
  const int kernel = conv->kernel_height * conv->kernel_width, ternary = conv->form == FTBNN_TERNARY;
  const int position_words = ftbnn_position_words(conv);
  const uint32_t outside = (uint32_t)(conv->height * conv->width * position_words);
  /* In the place of `nonzero` where no input is 0: one position, and what lies outside. */
  uint32_t *full = windows, *zeros = full + 2 * position_words, *taps = zeros + conv->height;
  uint32_t *masks = taps + FTBNN_BLOCK * kernel, *positive = masks + FTBNN_BLOCK * kernel;
  if (first == 0) {
    memset(signs.positive + outside, 0, (size_t)position_words * sizeof *full);
    fill_position(conv, full);
    memset(full + position_words, 0, (size_t)position_words * sizeof *full);
    if (ternary) {
      memset(signs.nonzero + outside, 0, (size_t)position_words * sizeof *full);
      find_zeros(conv, signs.nonzero, full, position_words, zeros);
    }
  }
  int y = first / conv->out_width, x = first % conv->out_width, inside = 0, masked = 0;
  for (int p = 0; p < FTBNN_BLOCK; p++) {
    inside += find_taps(conv, y, x, (uint32_t)position_words, outside, taps + p * kernel);
    if (ternary) masked |= holds_zeros(conv, y, zeros);
    if (p < count - 1 && ++x == conv->out_width) x = 0, y++;
  }
  /* Where no input is 0, only what lies outside is. */
  const uint32_t *mask = ternary ? signs.nonzero : full, *places = ternary ? taps : masks;
  const int run = inside == FTBNN_BLOCK * kernel && conv->groups == 1 && conv->dilation_x == 1 &&
                          conv->group[0].in_features % 32 == 0
                      ? conv->kernel_width : 1;
  masked |= inside < FTBNN_BLOCK * kernel;
  if (masked && !ternary) {
    for (int i = 0; i < FTBNN_BLOCK * kernel; i++) masks[i] = taps[i] == outside ? (uint32_t)position_words : 0;
  }

  const uint32_t *weights = conv->weights;
  uint32_t offset = 0;
  for (int g = 0; g < conv->groups; g++) {
    const int channels = conv->group[g].in_features, outputs = conv->group[g].features, bits = kernel * channels;
    const window_layout layout = layout_of(kernel, channels);
    const int words = layout.words;
    uint32_t *nonzero = positive + words * FTBNN_BLOCK;
    int32_t own[FTBNN_BLOCK], full_windows = 0;
    for (int p = 0; p < FTBNN_BLOCK; p++) {
      gather(signs.positive + offset, taps + p * kernel, run, layout, positive + p * words);
      own[p] = bits;
      if (conv->form == FTBNN_AND) {
        own[p] = bits_set(positive + p * words, words);
      } else if (masked) {
        gather(mask + offset, places + p * kernel, run, layout, nonzero + p * words);
        own[p] = bits_set(nonzero + p * words, words);
      }
      full_windows += own[p] == bits;
    }
    if (conv->form == FTBNN_AND) {
      count_bits(FTBNN_AND, weights, words, bits, outputs, positive, nonzero, own, sums, stride);
    } else if (full_windows < FTBNN_BLOCK) {
      count_bits(FTBNN_TERNARY, weights, words, bits, outputs, positive, nonzero, own, sums, stride);
    } else {
      count_bits(FTBNN_XNOR, weights, words, bits, outputs, positive, nonzero, own, sums, stride);
    }
    weights += words * outputs;
    offset += (uint32_t)ftbnn_words(channels);
    sums += outputs;
  }
}

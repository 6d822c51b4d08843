#include "ftbnn_integer.h"

/* Rows. */

/* Moves what the windows above have read already up. Returns how many rows that are. */
static int keep_rows(const ftbnn_integer_conv *conv, int y, void *rows, size_t row_bytes) {
  const int kept = y && conv->dilation_y == 1 && conv->kernel_height > conv->stride_y
                       ? conv->kernel_height - conv->stride_y : 0;
  unsigned char *bytes = rows;
  memmove(bytes, bytes + (size_t)(conv->kernel_height - kept) * row_bytes, (size_t)kept * row_bytes);
  return kept;
}

static size_t row_length(const ftbnn_integer_conv *conv) {
  return (size_t)conv->row_width * (size_t)conv->channels;
}

/* Returns where the input of row `k` of a window of output row `y` begins; -1 where it is padding. */
static long input_start(const ftbnn_integer_conv *conv, int y, int k) {
  const int at = y * conv->stride_y - conv->top + k * conv->dilation_y;
  return at < 0 || at >= conv->height ? -1 : (long)at * conv->width * conv->channels;
}

void ftbnn_read_bytes(const ftbnn_integer_conv *conv, const uint8_t *pixels, int y, uint8_t *rows) {
  const size_t row = row_length(conv), length = (size_t)conv->width * (size_t)conv->channels;
  for (int k = keep_rows(conv, y, rows, row); k < conv->kernel_height; k++) {
    uint8_t *out = rows + (size_t)k * row;
    const long start = input_start(conv, y, k);
    memset(out, 0, row);
    if (start >= 0) memcpy(out + conv->left * conv->channels, pixels + start, length);
  }
  memset(rows + (size_t)conv->kernel_height * row, 0, FTBNN_BYTES);
}

void ftbnn_read_table(const ftbnn_integer_conv *conv, const uint8_t *pixels, const int16_t *table, int y,
                      int16_t *rows) {
  const size_t row = row_length(conv);
  for (int k = keep_rows(conv, y, rows, row * sizeof *rows); k < conv->kernel_height; k++) {
    int16_t *out = rows + (size_t)k * row;
    const long start = input_start(conv, y, k);
    memset(out, 0, row * sizeof *out);
    if (start < 0) continue;
    const uint8_t *pixel = pixels + start;
    out += conv->left * conv->channels;
    for (int i = 0; i < conv->width; i++) {
      for (int c = 0; c < conv->channels; c++) *out++ = table[256 * c + *pixel++];
    }
  }
  memset(rows + (size_t)conv->kernel_height * row, 0, FTBNN_BYTES * sizeof *rows);
}

void ftbnn_read_values(const ftbnn_integer_conv *conv, const ftbnn_value *x, int y, int16_t *rows,
                       uint32_t *saturated) {
  const size_t row = row_length(conv);
  const int length = conv->width * conv->channels;
  for (int k = keep_rows(conv, y, rows, row * sizeof *rows); k < conv->kernel_height; k++) {
    int16_t *out = rows + (size_t)k * row;
    const long start = input_start(conv, y, k);
    if (conv->row_width != conv->width || start < 0) memset(out, 0, row * sizeof *out);
    if (start < 0) continue;
    out += conv->left * conv->channels;
    ftbnn_narrow(x + start, length, conv->bits, conv->largest, out, saturated);
  }
  memset(rows + (size_t)conv->kernel_height * row, 0, FTBNN_BYTES * sizeof *rows);
}

/* Sums. */

/* Where the windows and the weights of one group lie, in units of their elements. */
typedef struct {
  int runs, steps;             /* pieces of a row that lie side by side, and how many times their inputs are read */
  size_t row, apart, block;    /* from row to row, from run to run, from block to block of weights */
  int rows;
} walk;

static walk walk_of(const ftbnn_integer_conv *conv, int many) {
  const int inputs = conv->channels / conv->groups;
  /* Neighbouring positions of one row are one run of inputs. */
  const int joined = conv->groups == 1 && conv->dilation_x == 1;
  const int length = joined ? conv->kernel_width * inputs : inputs;
  walk w;
  w.runs = joined ? 1 : conv->kernel_width;
  w.steps = (length + many - 1) / many;
  w.row = row_length(conv);
  w.apart = (size_t)(conv->dilation_x * conv->channels);
  w.rows = conv->kernel_height;
  w.block = (size_t)(w.rows * w.runs * w.steps * many) * (size_t)conv->outputs;
  return w;
}

static inline const int32_t *start_of(const ftbnn_integer_conv *conv, int y, int x) {
  if (!conv->bias) return 0;
  const int kind = conv->row_kinds[y] * conv->kinds + conv->column_kinds[x];
  return conv->bias + (size_t)kind * (size_t)conv->features;
}

#ifdef FTBNN_DUAL_PRODUCTS

/* Two numbers of 16 bits, wherever they lie. Freestanding, memcpy would be a call. */
static inline int16x2_t two_at(const void *x) {
  int16x2_t two;
  __builtin_memcpy(&two, x, sizeof two);
  return two;
}
/* Bytes 1 and 3 of a word where 0 and 2 were. */
static inline int16x2_t odd(int16x2_t word) { return (int16x2_t)((uint32_t)word >> 8 | (uint32_t)word << 24); }

static inline int32_t four_bytes(int32_t sum, const uint8_t *x, const int8_t *w) {
  const int16x2_t word = two_at(x), weights = two_at(w);
  sum = __smlad((int16x2_t)__uxtb16((uint8x4_t)word), __sxtb16((int8x4_t)weights), sum);
  return __smlad((int16x2_t)__uxtb16((uint8x4_t)odd(word)), __sxtb16((int8x4_t)odd(weights)), sum);
}
static inline int32_t four_8(int32_t sum, const int16_t *x, const int8_t *w) {
  const int16x2_t weights = two_at(w);
  sum = __smlad(two_at(x), __sxtb16((int8x4_t)weights), sum);
  return __smlad(two_at(x + 2), __sxtb16((int8x4_t)odd(weights)), sum);
}
static inline int32_t two_16(int32_t sum, const int16_t *x, const int16_t *w) {
  return __smlad(two_at(x), two_at(w), sum);
}

#else

static inline int32_t four_bytes(int32_t sum, const uint8_t *x, const int8_t *w) {
  return sum + (x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3]);
}
static inline int32_t four_8(int32_t sum, const int16_t *x, const int8_t *w) {
  return sum + (x[0] * w[0] + x[1] * w[2] + x[2] * w[1] + x[3] * w[3]);
}
static inline int32_t two_16(int32_t sum, const int16_t *x, const int16_t *w) {
  return sum + (x[0] * w[0] + x[1] * w[1]);
}

#endif

/* Defines the sums of `outputs` outputs, at one position. PRODUCTS: adds those of MANY inputs and weights. */
#define FTBNN_PLAIN(NAME, INPUT, WEIGHT, MANY, PRODUCTS)                                                     \
  static void NAME(const walk *walk, const INPUT *window, const WEIGHT *w, int outputs, const int32_t *start, \
                   int32_t *restrict sums) {                                                                 \
    for (int o = 0; o < outputs; o++) sums[o] = start ? start[o] : 0;                                        \
    for (int k = 0; k < walk->rows; k++) {                                                                   \
      for (int run = 0; run < walk->runs; run++) {                                                           \
        const INPUT *x = window + (size_t)k * walk->row + (size_t)run * walk->apart;                         \
        for (int i = 0; i < walk->steps; i++, x += MANY) {                                                   \
          for (int o = 0; o < outputs; o++, w += MANY) sums[o] = PRODUCTS(sums[o], x, w);                    \
        }                                                                                                    \
      }                                                                                                      \
    }                                                                                                        \
  }

FTBNN_PLAIN(plain_bytes, uint8_t, int8_t, FTBNN_BYTES, four_bytes)
FTBNN_PLAIN(plain_8, int16_t, int8_t, FTBNN_BYTES, four_8)
FTBNN_PLAIN(plain_16, int16_t, int16_t, FTBNN_PAIR, two_16)

#ifdef FTBNN_PAIR_LANES

/* Positions at once. */
enum { POSITIONS = 4 };

/* Defines the sums of VECTORS vectors of outputs at POSITIONS positions. TERMS: products of pairs that MANY inputs
 * are; LOAD_INPUTS and LOAD_WEIGHTS give as many vectors, DOT adds the products of two; LACKING: what the inputs lack
 * in every byte, which the weights have been multiplied by. */
#define FTBNN_TILE(NAME, INPUT, WEIGHT, MANY, TERMS, VECTORS, LOAD_INPUTS, LOAD_WEIGHTS, DOT, LACKING)       \
  static inline void NAME(const walk *walk, const INPUT *const window[POSITIONS], const WEIGHT *w,           \
                          const int32_t *const start[POSITIONS], int32_t *const out[POSITIONS], int count) {  \
    ftbnn_pairs sums[POSITIONS][VECTORS], lacking[VECTORS];                                                  \
    for (int p = 0; p < POSITIONS; p++) {                                                                    \
      for (int v = 0; v < VECTORS; v++)                                                                      \
        sums[p][v] = start[p] ? ftbnn_pairs_load(start[p] + v * FTBNN_PAIR_LANES) : ftbnn_pairs_zero();      \
    }                                                                                                        \
    for (int v = 0; v < VECTORS; v++) lacking[v] = ftbnn_pairs_zero();                                       \
    for (int k = 0; k < walk->rows; k++) {                                                                   \
      for (int run = 0; run < walk->runs; run++) {                                                           \
        size_t at = (size_t)k * walk->row + (size_t)run * walk->apart;                                       \
        for (int i = 0; i < walk->steps; i++, at += MANY, w += MANY * FTBNN_OUTPUTS) {                       \
          ftbnn_pairs weights[VECTORS][TERMS];                                                               \
          for (int v = 0; v < VECTORS; v++) {                                                                \
            const size_t lane = (size_t)v * FTBNN_PAIR_LANES;                                                \
            LOAD_WEIGHTS(w + lane / FTBNN_OUTPUTS * walk->block + lane % FTBNN_OUTPUTS * MANY, weights[v]);  \
            if (LACKING) lacking[v] = DOT(lacking[v], ftbnn_pairs_word(LACKING), weights[v][0]);                         \
          }                                                                                                  \
          for (int p = 0; p < POSITIONS; p++) {                                                              \
            ftbnn_pairs x[TERMS];                                                                            \
            LOAD_INPUTS(window[p] + at, x);                                                                  \
            for (int t = 0; t < TERMS; t++) {                                                                \
              for (int v = 0; v < VECTORS; v++) sums[p][v] = DOT(sums[p][v], x[t], weights[v][t]);           \
            }                                                                                                \
          }                                                                                                  \
        }                                                                                                    \
      }                                                                                                      \
    }                                                                                                        \
    for (int p = 0; p < count; p++) {                                                                        \
      for (int v = 0; v < VECTORS; v++) {                                                                    \
        if (LACKING) sums[p][v] = ftbnn_pairs_sub(sums[p][v], lacking[v]);                                   \
        ftbnn_pairs_store(out[p] + v * FTBNN_PAIR_LANES, sums[p][v]);                                        \
      }                                                                                                      \
    }                                                                                                        \
  }

#define FTBNN_TILES(NAME, INPUT, WEIGHT, MANY, TERMS, LOAD_INPUTS, LOAD_WEIGHTS, DOT, LACKING)                \
  FTBNN_TILE(NAME##_wide, INPUT, WEIGHT, MANY, TERMS, FTBNN_WIDE, LOAD_INPUTS, LOAD_WEIGHTS, DOT, LACKING)   \
  FTBNN_TILE(NAME##_narrow, INPUT, WEIGHT, MANY, TERMS, FTBNN_NARROW, LOAD_INPUTS, LOAD_WEIGHTS, DOT, LACKING) \
  static void NAME(const walk *walk, const INPUT *const window[POSITIONS], const WEIGHT *weights, int outputs, \
                   const int32_t *const start[POSITIONS], int32_t *const out[POSITIONS], int count) {         \
    for (int o = 0; o < outputs;) {                                                                          \
      const WEIGHT *w = weights + (size_t)(o / FTBNN_OUTPUTS) * walk->block + o % FTBNN_OUTPUTS * MANY;      \
      const int32_t *from[POSITIONS];                                                                        \
      int32_t *to[POSITIONS];                                                                                \
      for (int p = 0; p < POSITIONS; p++) from[p] = start[p] ? start[p] + o : 0, to[p] = out[p] + o;         \
      if (FTBNN_WIDE != FTBNN_NARROW && outputs - o >= FTBNN_WIDE * FTBNN_PAIR_LANES) {                      \
        NAME##_wide(walk, window, w, from, to, count);                                                       \
        o += FTBNN_WIDE * FTBNN_PAIR_LANES;                                                                  \
      } else {                                                                                               \
        NAME##_narrow(walk, window, w, from, to, count);                                                     \
        o += FTBNN_NARROW * FTBNN_PAIR_LANES;                                                                \
      }                                                                                                      \
    }                                                                                                        \
  }

FTBNN_TILES(tiles_bytes, uint8_t, int8_t, FTBNN_BYTES, FTBNN_BYTE_TERMS, ftbnn_bytes_spread, ftbnn_bytes_weights,
            ftbnn_bytes_dot, FTBNN_LACKING)
FTBNN_TILES(tiles_8, int16_t, int8_t, FTBNN_BYTES, 2, ftbnn_two_pairs_spread, ftbnn_halves, ftbnn_pairs_dot, 0u)
FTBNN_TILES(tiles_16, int16_t, int16_t, FTBNN_PAIR, 1, ftbnn_pair_spread, ftbnn_pair_weights, ftbnn_pairs_dot, 0u)

/* At many positions, whose sums have room for those of a whole block. */
#define FTBNN_AT_POSITIONS(NAME, INPUT, MANY)                                                                \
  if (conv->outputs == FTBNN_OUTPUTS) {                                                                      \
    for (int p = 0; p < count; p += POSITIONS) {                                                             \
      const INPUT *window[POSITIONS];                                                                        \
      const int32_t *start[POSITIONS];                                                                       \
      int32_t *out[POSITIONS];                                                                               \
      for (int q = 0; q < POSITIONS; q++) {                                                                  \
        const int at = ftbnn_smaller(p + q, count - 1);                                                      \
        window[q] = rows + (size_t)((left + at) * conv->stride_x * conv->channels + group * inputs);         \
        start[q] = start_of(conv, y, left + at);                                                             \
        if (start[q]) start[q] += group * features;                                                          \
        out[q] = sums + at * (conv->features + FTBNN_SLACK) + group * features;                              \
      }                                                                                                      \
      tiles_##NAME(&w, window, weights, features, start, out, ftbnn_smaller(POSITIONS, count - p));          \
    }                                                                                                        \
    continue;                                                                                                \
  }

#else
#define FTBNN_AT_POSITIONS(NAME, INPUT, MANY)
#endif

#define FTBNN_CONVOLVE(NAME, INPUT, WEIGHT, MANY)                                                            \
  void ftbnn_convolve_##NAME(const ftbnn_integer_conv *conv, const INPUT *rows, int y, int left, int count,  \
                             int32_t *sums) {                                                                \
    const int inputs = conv->channels / conv->groups, features = conv->features / conv->groups;              \
    const int blocks = (features + conv->outputs - 1) / conv->outputs;                                       \
    const walk w = walk_of(conv, MANY);                                                                      \
    for (int group = 0; group < conv->groups; group++) {                                                     \
      const WEIGHT *weights = (const WEIGHT *)conv->weights + (size_t)(group * blocks) * w.block;            \
      FTBNN_AT_POSITIONS(NAME, INPUT, MANY)                                                                  \
      for (int p = 0; p < count; p++) {                                                                      \
        const INPUT *window =                                                                                \
            rows + (size_t)((left + p) * conv->stride_x * conv->channels + group * inputs);                  \
        const int32_t *start = start_of(conv, y, left + p);                                                  \
        int32_t *out = sums + p * (conv->features + FTBNN_SLACK) + group * features;                         \
        for (int b = 0; b < blocks; b++) {                                                                   \
          const int first = b * conv->outputs;                                                               \
          plain_##NAME(&w, window, weights + (size_t)b * w.block, conv->outputs,                             \
                       start ? start + group * features + first : 0, out + first);                           \
        }                                                                                                    \
      }                                                                                                      \
    }                                                                                                        \
  }

FTBNN_CONVOLVE(bytes, uint8_t, int8_t, FTBNN_BYTES)
FTBNN_CONVOLVE(8, int16_t, int8_t, FTBNN_BYTES)
FTBNN_CONVOLVE(16, int16_t, int16_t, FTBNN_PAIR)

/* Counting bits a word at a time, for processors without vectors: no table, and few instructions a word.
 *
 * A full adder makes of three words two, of which one counts twice. Words of a window without a 0 need no mask,
 * and those that lie outside altogether are passed over, so that a border costs nothing.
 */
#ifndef FTBNN_WORDS_H
#define FTBNN_WORDS_H

#include "ftbnn_binary.h"
#include "ftbnn_vector.h"

/* Words whose counts of at most 8 fit into a byte. */
enum { FTBNN_WORDS_RUN = 30 };

/* Bits set in every four bits. */
static inline uint32_t ftbnn_fours(uint32_t v) {
  v -= v >> 1 & 0x55555555u;
  return (v & 0x33333333u) + (v >> 2 & 0x33333333u);
}

static inline uint32_t ftbnn_match(int form, uint32_t weight, uint32_t positive) {
  return form == FTBNN_AND ? weight & positive : weight ^ positive;
}

/* Adds what three words of a window give to the partial counts of a tile's outputs. */
static inline void ftbnn_add_three(int form, const uint32_t *const weights[3], const uint32_t words[3],
                                   uint32_t *restrict partial, int outputs) {
  const uint32_t *first = weights[0], *second = weights[1], *third = weights[2];
  const uint32_t x = words[0], y = words[1], z = words[2];
  for (int o = 0; o < outputs; o++) {
    const uint32_t a = ftbnn_match(form, *first++, x), b = ftbnn_match(form, *second++, y);
    const uint32_t c = ftbnn_match(form, *third++, z), differ = a ^ b;
    const uint32_t fours = ftbnn_fours(differ ^ c) + 2 * ftbnn_fours((a & b) | (differ & c));
    partial[o] += (fours & 0x0f0f0f0fu) + (fours >> 4 & 0x0f0f0f0fu);
  }
}

static inline void ftbnn_add_one(int form, const uint32_t *weights, uint32_t word, uint32_t mask,
                                 uint32_t *restrict partial, int outputs) {
  for (int o = 0; o < outputs; o++) {
    const uint32_t fours = ftbnn_fours(ftbnn_match(form, weights[o], word) & mask);
    partial[o] += (fours + (fours >> 4)) & 0x0f0f0f0fu;
  }
}

/* Sorts the words `start` to `end` of a window: first those without a 0, then those that need their mask;
 * the rest, where nothing can be counted, is left out. `spare`: bits of the last word that stand for none. */
static inline int ftbnn_sort_words(int form, const uint32_t *positive, const uint32_t *nonzero, int start, int end,
                                   uint32_t spare, uint8_t *order, int *whole) {
  int count = 0, masked = 0;
  uint8_t others[FTBNN_WORDS_RUN];
  for (int k = start; k < end; k++) {
    uint32_t mask = 0xffffffffu;
    if (form == FTBNN_AND && !positive[k]) mask = 0;
    if (form == FTBNN_TERNARY) mask = nonzero[k] | (k == end - 1 ? spare : 0);
    if (mask == 0xffffffffu) {
      order[count++] = (uint8_t)(k - start);
    } else if (mask & ~(k == end - 1 ? spare : 0)) {
      others[masked++] = (uint8_t)(k - start);
    }
  }
  *whole = count;
  for (int i = 0; i < masked; i++) order[count++] = others[i];
  return count;
}

/* Counts bits for all output channels of a group at one position; `bits`: of a window. */
static inline void ftbnn_count_words(int form, const uint32_t *weights, int words, int bits, int outputs,
                                     const uint32_t *positive, const uint32_t *nonzero, int32_t *counts) {
  memset(counts, 0, (size_t)outputs * sizeof *counts);
  for (int start = 0; start < words; start += FTBNN_WORDS_RUN) {
    const int end = ftbnn_smaller(words, start + FTBNN_WORDS_RUN);
    const uint32_t spare = end == words && bits % 32 ? 0xffffffffu << bits % 32 : 0;
    uint8_t order[FTBNN_WORDS_RUN];
    int whole;
    const int count = ftbnn_sort_words(form, positive, nonzero, start, end, spare, order, &whole);
    for (int first = 0; first < outputs; first += FTBNN_TILE) {
      const int tile = ftbnn_smaller(FTBNN_TILE, outputs - first);
      const uint32_t *const at = weights + (size_t)first * (size_t)words + (size_t)start * (size_t)tile;
      uint32_t partial[FTBNN_TILE] = {0};
      int i = 0;
      for (; i + 3 <= whole; i += 3) {
        const uint32_t *three[3];
        uint32_t held[3];
        for (int j = 0; j < 3; j++) {
          three[j] = at + (size_t)order[i + j] * (size_t)tile;
          held[j] = positive[start + order[i + j]];
        }
        if (form == FTBNN_AND) {
          ftbnn_add_three(FTBNN_AND, three, held, partial, tile);
        } else {
          ftbnn_add_three(FTBNN_XNOR, three, held, partial, tile);
        }
      }
      for (; i < count; i++) {
        const int k = start + order[i];
        const uint32_t mask = i < whole ? 0xffffffffu : nonzero[k];
        ftbnn_add_one(form, at + (size_t)order[i] * (size_t)tile, positive[k], mask, partial, tile);
      }
      for (int o = 0; o < tile; o++) counts[first + o] += (int32_t)ftbnn_total(partial[o]);
    }
  }
}

#endif

/* Two networks in one program, which is C++: runs both on the images in two files, 3 each, and prints the
 * logits of both, a line an image. */
#include <cstdio>

#include "one/ftbnn_image.h"
#include "one/model.h"
#include "two/ftbnn_image.h"
#include "two/model.h"

static one_net one_memory;
static Two_net two_memory;

int main(int, char **argv) {
  static uint8_t one_read[ONE_PIXEL_BYTES], one_pixels[ONE_PIXEL_BYTES];
  static uint8_t two_read[TWO_PIXEL_BYTES], two_pixels[TWO_PIXEL_BYTES];
  one_value one_logits[ONE_CLASSES];
  Two_value two_logits[TWO_CLASSES];
  const one_preprocessing one_how = {ONE_IMAGE_SIZE, ONE_CHANNELS, 0, ONE_ANTIALIAS};
  const Two_preprocessing two_how = {TWO_IMAGE_SIZE, TWO_CHANNELS, 0, TWO_ANTIALIAS};
  one_net *one;
  Two_net *two;
  if (one_init(&one_memory, sizeof one_memory, &one) != ONE_OK) return 2;
  if (Two_init(&two_memory, sizeof two_memory, &two) != TWO_OK) return 2;
  std::FILE *one_file = std::fopen(argv[1], "rb"), *two_file = std::fopen(argv[2], "rb");
  for (int n = 0; n < 3; n++) {
    if (std::fread(one_read, 1, sizeof one_read, one_file) != sizeof one_read) return 2;
    if (std::fread(two_read, 1, sizeof two_read, two_file) != sizeof two_read) return 2;
    const one_image first = {ONE_IMAGE_SIZE, ONE_IMAGE_SIZE, ONE_CHANNELS, one_read};
    const Two_image second = {TWO_IMAGE_SIZE, TWO_IMAGE_SIZE, TWO_CHANNELS, two_read};
    if (one_preprocess(&first, &one_how, one_pixels)) return 2;
    if (Two_preprocess(&second, &two_how, two_pixels)) return 2;
    if (one_predict(one, one_pixels, sizeof one_pixels, one_logits, ONE_CLASSES) != ONE_OK) return 2;
    if (Two_predict(two, two_pixels, sizeof two_pixels, two_logits, TWO_CLASSES) != TWO_OK) return 2;
    for (int i = 0; i < ONE_CLASSES; i++) std::printf("%.9g ", static_cast<double>(one_logits[i]));
    for (int i = 0; i < TWO_CLASSES; i++) std::printf("%ld ", static_cast<long>(two_logits[i]));
    std::printf("\n");
  }
  return 0;
}

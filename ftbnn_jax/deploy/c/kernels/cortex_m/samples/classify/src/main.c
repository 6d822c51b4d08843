/* Classifies an image that lies in flash, and says which class it is, how long that took, and whether every bit
 * of the result is the one of the computer that exported the network. */
#include <@PREFIX@_golden.h>
#include <@PREFIX@_model.h>
#include <zephyr/kernel.h>
#include <zephyr/sys/printk.h>

static ftbnn_net memory;
static ftbnn_value logits[FTBNN_CLASSES];

int main(void) {
  ftbnn_net *net;
  if (ftbnn_init(&memory, sizeof memory, &net) != FTBNN_OK) return 0;
  const uint32_t start = k_cycle_get_32();
  const int status = ftbnn_predict(net, ftbnn_golden_pixels, FTBNN_PIXEL_BYTES, logits, FTBNN_CLASSES);
  const uint32_t took = k_cycle_get_32() - start;
  if (status < 0) {
    printk("predict failed\n");
  } else {
    printk("%s, %u us, %s\n", ftbnn_class_names[ftbnn_golden_largest(logits)],
           (unsigned int)k_cyc_to_us_floor32(took), ftbnn_golden_equals(logits) ? "as expected" : "NOT as expected");
  }
  return 0;
}

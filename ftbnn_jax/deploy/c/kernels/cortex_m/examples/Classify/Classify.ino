// Classifies an image that lies in flash, again and again, and says on the serial port which class it is, how
// long that took, and whether every bit of the result is the one of the computer that exported the network.
#include <@PREFIX@_model.h>
#include <@PREFIX@_golden.h>

static ftbnn_net memory;
static ftbnn_net *net;
static ftbnn_value logits[FTBNN_CLASSES];

void setup() {
  Serial.begin(115200);
  if (ftbnn_init(&memory, sizeof memory, &net) != FTBNN_OK) Serial.println("init failed");
}

void loop() {
  const unsigned long start = micros();
  const int status = ftbnn_predict(net, ftbnn_golden_pixels, FTBNN_PIXEL_BYTES, logits, FTBNN_CLASSES);
  const unsigned long took = micros() - start;
  if (status < 0) {
    Serial.println("predict failed");
  } else {
    Serial.print(ftbnn_class_names[ftbnn_golden_largest(logits)]);
    Serial.print(", ");
    Serial.print(took);
    Serial.print(" us, ");
    Serial.println(ftbnn_golden_equals(logits) ? "as expected" : "NOT as expected");
  }
  delay(2000);
}

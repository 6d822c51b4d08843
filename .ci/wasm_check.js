// What test_model does, in WebAssembly: node wasm_check.js MODULE ABOUT GOLDEN, the latter two as exported to a
// page (ABOUT as JSON). Prints the same JSON object and ends with the same exit status.
"use strict";

const fs = require("fs");
const path = require("path");
const { FtbnnNet } = require(path.join(__dirname, "..", "ftbnn_jax", "deploy", "web", "page", "net.js"));

async function main([modulePath, aboutPath, goldenPath]) {
  const module = await WebAssembly.compile(fs.readFileSync(modulePath));
  const net = await FtbnnNet.load(module, JSON.parse(fs.readFileSync(aboutPath)));
  let found;
  for (found of net.check(fs.readFileSync(goldenPath)));
  const wrong = found.blocks.some((block) => block.differing || block.end_to_end) || found.logits_differing;
  console.log(JSON.stringify({ ...found, kernels: net.kernels, checksum: net.checksum() }));
  process.exitCode = wrong ? 1 : 0;
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 2;
});

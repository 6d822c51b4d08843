/* Reads files of the export beside the page: over HTTP as they are; from a disk, where browsers refuse that,
 * from a script that holds the same bytes as text. */
"use strict";

const ftbnnTexts = {};

async function ftbnnRead(name) {
  if (location.protocol !== "file:") {
    const response = await fetch(name);
    if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
    return new Uint8Array(await response.arrayBuffer());
  }
  await new Promise((resolve, reject) => {
    const script = Object.assign(document.createElement("script"), { src: `${name}.js`, onload: resolve });
    script.onerror = () => reject(new Error(`${name}.js: cannot be read`));
    document.head.append(script);
  });
  const text = atob(ftbnnTexts[name]);
  delete ftbnnTexts[name];
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/* Compiles the program with SIMD instructions, or where the browser lacks them (or ?plain asks for it) the one
 * without. */
async function ftbnnModule() {
  let bytes, module;
  if (!new URLSearchParams(location.search).has("plain")) {
    bytes = await ftbnnRead("ftbnn.wasm");
    module = await WebAssembly.compile(bytes).catch(() => null);
  }
  if (!module) {
    bytes = await ftbnnRead("ftbnn_plain.wasm");
    module = await WebAssembly.compile(bytes);
  }
  return { module, bytes: bytes.length };
}

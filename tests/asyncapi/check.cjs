// Parses the AsyncAPI document on standard input and prints what the parser has to say, a line each. Exit code 1 if that
// is anything at all.
const { readFileSync } = require("node:fs");
const { Parser } = require("@asyncapi/parser");

new Parser().parse(readFileSync(0, "utf8")).then(({ document, diagnostics }) => {
  for (const one of diagnostics) console.log(`${one.path.join(".")}: ${one.message}`);
  if (!document || diagnostics.length > 0) process.exit(1);
  for (const channel of document.channels()) console.log(channel.address());
});

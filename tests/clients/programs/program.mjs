// What all programs for Node share: they read texts from standard input, and print vectors or an error as one JSON
// object. A program is run as `node PROGRAM.mjs SCENARIO`; the server's address, the model and the key come from the
// environment.

// Why the program runs: few, many, odd, bad_model, bad_key or refused; most programs do the same in all cases.
export const SCENARIO = process.argv[2];
// The server's address, such as http://localhost:8000, without a slash at the end.
export const { BASE_URL, MODEL, API_KEY } = process.env;

// Prints what `embed` returns for the texts, or the message of its error, as a user sees it.
export async function run(embed) {
  const chunks = [];
  for await (const chunk of process.stdin) chunks.push(chunk);
  const texts = JSON.parse(Buffer.concat(chunks).toString("utf8"));
  let answer;
  try {
    answer = { vectors: (await embed(texts)).map((vector) => Array.from(vector)) };
  } catch (error) {
    answer = { error: error.message, type: error.name };
  }
  console.log(JSON.stringify(answer));
}

// What OpenAI's client for Node gets from a service: one video from its picture to its deletion. Prints it as JSON.
import { createReadStream } from "node:fs";
import { createHash } from "node:crypto";
import OpenAI from "openai";

const picture = process.argv[2];
const client = new OpenAI({ baseURL: process.env.SERVICE_URL, apiKey: process.env.SERVICE_KEY });

async function ended(id) {
  for (;;) {
    const { data, response } = await client.videos.retrieve(id).withResponse();
    if (data.status !== "queued" && data.status !== "in_progress") return data;
    await new Promise((resolve) => setTimeout(resolve, Number(response.headers.get("openai-poll-after-ms"))));
  }
}

async function refusal(asked) {
  try {
    await asked;
  } catch (error) {
    return { name: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
  throw new Error("it was not refused");
}

async function bytes(variant) {
  const answer = await client.videos.downloadContent(video.id, variant && { variant });
  return Buffer.from(await answer.arrayBuffer());
}

const models = [];
for await (const model of client.models.list()) models.push(model.id);
const video = await client.videos.create({
  model: models[0],
  prompt: "A quiet street at dawn",
  input_reference: createReadStream(picture),
  seconds: "1",
  size: "192x108",
  seed: 7,
});
const another = await client.videos.create({ prompt: "Waves", seconds: "1", size: "64x64", fps: 8 });
const made = await ended(video.id);
const film = await bytes();
const frame = await bytes("thumbnail");
await ended(another.id);
const listed = [];
for await (const each of client.videos.list({ limit: 1, order: "asc" })) listed.push(each.id);
const refused = {
  model: await refusal(client.videos.create({ model: "sora-2", prompt: "Waves" })),
  seconds: await refusal(client.videos.create({ prompt: "Waves", seconds: "12" })),
  remix: await refusal(client.videos.remix(video.id, { prompt: "Waves" })),
  key: await refusal(client.withOptions({ apiKey: "wrong" }).videos.retrieve(video.id)),
};
const deleted = await client.videos.delete(video.id);
refused.deleted = await refusal(client.videos.retrieve(video.id));
await client.videos.delete(another.id);
console.log(
  JSON.stringify({
    models,
    created: video,
    made,
    film: { begins: film.subarray(4, 8).toString(), sha256: createHash("sha256").update(film).digest("hex") },
    frame: { begins: frame.subarray(8, 12).toString() },
    listed,
    refused,
    deleted,
  }),
);

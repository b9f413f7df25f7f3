// The content of a video, as OpenAI's client for Node downloads it.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.SERVICE_URL, apiKey: process.env.SERVICE_KEY });
const answer = await client.videos.downloadContent(process.argv[2]);
console.log(await answer.text());

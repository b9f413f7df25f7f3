/** Where the service tells of jobs that have ended: `POST /video-api/webhook`, signed as Standard Webhooks say. */

import { httpRouter } from "convex/server";
import { Webhook, WebhookVerificationError } from "standardwebhooks";

import { internal } from "./_generated/api";
import { httpAction } from "./_generated/server";
import { newsOf, type Seen } from "./states";
import { required } from "./videoApi/client";

const http = httpRouter();

http.route({
  path: "/video-api/webhook",
  method: "POST",
  handler: httpAction(async (ctx, request) => {
    let told: Seen;
    try {
      const webhook = new Webhook(required("VIDEO_API_WEBHOOK_SECRET"));
      told = webhook.verify(await request.text(), Object.fromEntries(request.headers)) as Seen;
    } catch (error) {
      if (!(error instanceof WebhookVerificationError)) throw error;
      return new Response(error.message, { status: 401 });
    }
    // An error here is a 500, after which the service sends it again.
    await ctx.runMutation(internal.rows.told, { news: newsOf(told) });
    return new Response(null, { status: 204 });
  }),
});

export default http;

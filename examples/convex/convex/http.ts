/** Where the service tells of jobs that have ended: `POST /video-api/webhook`, signed as Standard Webhooks say. */

import { httpRouter } from "convex/server";
import { Webhook, WebhookVerificationError } from "standardwebhooks";

import { internal } from "./_generated/api";
import { httpAction } from "./_generated/server";
import { ours, type News } from "./states";
import { required } from "./videoApi/client";
import type { components } from "./videoApi/schema";

/** What a `webhook_url` is sent. */
interface Told {
  job_id: string;
  status: components["schemas"]["Status"];
  video_url?: string | null;
  error?: string | null;
}

const http = httpRouter();

http.route({
  path: "/video-api/webhook",
  method: "POST",
  handler: httpAction(async (ctx, request) => {
    let told: Told;
    try {
      const webhook = new Webhook(required("VIDEO_API_WEBHOOK_SECRET"));
      told = webhook.verify(await request.text(), Object.fromEntries(request.headers)) as Told;
    } catch (error) {
      if (!(error instanceof WebhookVerificationError)) throw error;
      return new Response(error.message, { status: 401 });
    }
    // An error here is a 500, after which the service sends it again.
    await ctx.runMutation(internal.rows.told, { news: newsOf(told) });
    return new Response(null, { status: 204 });
  }),
});

function newsOf(told: Told): News {
  return {
    externalJobId: told.job_id,
    status: ours(told.status),
    ...(told.video_url && { outputVideoUrl: told.video_url }),
    ...(told.error && { errorMessage: told.error }),
  };
}

export default http;

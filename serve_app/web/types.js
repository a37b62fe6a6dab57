/**
 * The shapes of the API's answers, as far as the page uses them; /openapi.json has them whole.
 *
 * @typedef {'queued'|'encoding'|'sampling'|'decoding'|'completed'|'failed'|'cancelled'} State
 *
 * @typedef {object} Video
 * @property {string} id
 * @property {number} created_at Unix seconds, as all times here
 * @property {number|null} completed_at
 * @property {number|null} expires_at
 * @property {string} prompt
 * @property {string} negative_prompt
 * @property {string} size 'WIDTHxHEIGHT'
 * @property {number} num_frames
 * @property {number} fps
 * @property {string} [quality]
 * @property {{wait_s: number, limit_s: number, quality: string, num_inference_steps: number}|null} [draft_reason]
 *   why it is a draft that was not asked for
 * @property {number} num_inference_steps
 * @property {number} guidance_scale
 * @property {string|null} [lora]
 * @property {number|null} [lora_scale]
 * @property {number|string} seed text where a double cannot hold it
 * @property {boolean} exact
 * @property {State} state
 * @property {number} progress percent of the whole job
 * @property {number} step denoising steps done
 * @property {string} priority
 * @property {number} attempt
 * @property {number|null} queue_position
 * @property {number|null} estimated_start_at
 * @property {number|null} estimated_completion_at
 * @property {{code: string, message: string}|null} error
 * @property {string|null} remixed_from_video_id
 * @property {string|null} [enhanced_from_video_id]
 * @property {number|null} [preview_step] step of the newest preview
 * @property {string} [note] why the video came to its state; from its events
 *
 * @typedef {{data: Video[], has_more: boolean, last_id: string|null}} VideoPage
 *
 * @typedef {object} RunningJob
 * @property {string} id
 * @property {string} stage
 * @property {string} tier
 * @property {string} tenant
 * @property {string|null} replica null while it is on its way to one
 * @property {number} progress percent of the whole job
 * @property {number} step
 * @property {number} num_inference_steps
 * @property {number|null} step_s seconds of the device a step; null where nothing was measured
 * @property {string} size
 * @property {number} num_frames
 *
 * @typedef {object} WorkingReplica
 * @property {string} replica
 * @property {string} stage
 * @property {string} device
 * @property {number} slots 0 if it takes no more
 * @property {number} busy jobs that it works on, those of other tenants too
 * @property {string|null} problem why it takes no jobs
 * @property {string|null} revision of the model
 *
 * @typedef {object} Report the answer of GET /v1/status
 * @property {string} version
 * @property {number} at
 * @property {{stage: string, tier: string, tenant: string, count: number, oldest_at: number}[]} waiting
 * @property {RunningJob[]} running
 * @property {WorkingReplica[]} replicas
 * @property {Record<string, {count: number, ready_at: number}>} starting by stage
 *
 * @typedef {{default: number, minimum: number, maximum: number}} Dimension
 *
 * @typedef {object} Limits
 * @property {Dimension} width
 * @property {Dimension} height
 * @property {Dimension} num_frames
 * @property {Dimension} fps
 * @property {Dimension} num_inference_steps
 * @property {number} max_guidance_scale
 * @property {number} max_pixels bound of width x height x num_frames
 * @property {number|null} [max_picture_pixels] bound of width x height
 * @property {number} max_prompt_chars
 *
 * @typedef {{name: string, num_inference_steps: number, guidance_scale: number}} Quality
 *
 * @typedef {object} Model
 * @property {string} id
 * @property {Limits} limits
 * @property {{num_inference_steps?: number, guidance_scale?: number, enhanced_steps?: number|null, quality?: string}} [defaults]
 * @property {Quality[]} [qualities] best first
 * @property {number|null} [draft_when_wait_over_s] null: no drafts under load
 * @property {{name: string, description: string}[]} [loras]
 *
 * @typedef {object} VideoForm what the composer's fields hold; numbers are text until they are sent
 * @property {string} prompt
 * @property {string} negative_prompt
 * @property {string} width
 * @property {string} height
 * @property {number} num_frames
 * @property {string} fps
 * @property {string} quality empty: the server's choice
 * @property {string} num_inference_steps empty: the quality's own
 * @property {string} guidance_scale
 * @property {string} lora empty: none
 * @property {string} lora_scale empty: as it was trained
 * @property {string} seed empty: the server draws one
 * @property {string} priority empty: the server's choice
 * @property {boolean} exact
 *
 * @typedef {{text: string, param: string|null, retryAt: number|null}} Problem an error, ready to be shown; retryAt:
 *   milliseconds of this machine's clock
 */
export {};

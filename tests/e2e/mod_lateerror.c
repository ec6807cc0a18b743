/* A handler whose response meets an error behind its head: /...?STATUS, with "flush" when the beginning has left,
 * and "silent" when the handler fails and sends nothing that says so. */

#include "httpd.h"
#include "http_config.h"
#include "http_core.h"
#include "http_protocol.h"
#include "util_filter.h"

static int handler(request_rec *r)
{
    apr_bucket_alloc_t *alloc = r->connection->bucket_alloc;
    apr_bucket_brigade *bb;
    int status;

    if (!r->handler || strcmp(r->handler, "late-error")) {
        return DECLINED;
    }
    status = r->args ? atoi(r->args) : 500;
    ap_set_content_type(r, "text/plain");
    bb = apr_brigade_create(r->pool, alloc);
    apr_brigade_puts(bb, NULL, NULL, "begun");
    if (r->args && strstr(r->args, "flush")) {
        APR_BRIGADE_INSERT_TAIL(bb, apr_bucket_flush_create(alloc));
    }
    ap_pass_brigade(r->output_filters, bb);
    apr_brigade_cleanup(bb);
    /* Filters that wait for the length have let the head go with that. */
    APR_BRIGADE_INSERT_TAIL(bb, apr_bucket_flush_create(alloc));
    ap_pass_brigade(r->output_filters, bb);
    apr_brigade_cleanup(bb);
    if (r->args && strstr(r->args, "silent")) {
        return AP_FILTER_ERROR;
    }
    APR_BRIGADE_INSERT_TAIL(bb, ap_bucket_error_create(status, NULL, r->pool, alloc));
    APR_BRIGADE_INSERT_TAIL(bb, apr_bucket_eos_create(alloc));
    ap_pass_brigade(r->output_filters, bb);
    return OK;
}

static void register_hooks(apr_pool_t *pool)
{
    ap_hook_handler(handler, NULL, NULL, APR_HOOK_MIDDLE);
}

AP_DECLARE_MODULE(lateerror) = {
    STANDARD20_MODULE_STUFF, NULL, NULL, NULL, NULL, NULL, register_hooks
};

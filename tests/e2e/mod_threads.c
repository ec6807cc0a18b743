/* A module that starts a thread where its configuration is there, as agents and tracers do. */

#include <pthread.h>
#include <unistd.h>

#include "httpd.h"
#include "http_config.h"
#include "http_core.h"

static void *wait_for_ever(void *data)
{
    for (;;) {
        pause();
    }
    return data;
}

static int post_config(apr_pool_t *pconf, apr_pool_t *plog, apr_pool_t *ptemp, server_rec *s)
{
    pthread_t thread;

    if (ap_state_query(AP_SQ_MAIN_STATE) == AP_SQ_MS_CREATE_PRE_CONFIG) {
        return OK;
    }
    if (pthread_create(&thread, NULL, wait_for_ever, NULL)) {
        return HTTP_INTERNAL_SERVER_ERROR;
    }
    pthread_setname_np(thread, "agent");
    return OK;
}

static void register_hooks(apr_pool_t *p)
{
    ap_hook_post_config(post_config, NULL, NULL, APR_HOOK_MIDDLE);
}

AP_DECLARE_MODULE(threads) = {
    STANDARD20_MODULE_STUFF, NULL, NULL, NULL, NULL, NULL, register_hooks
};

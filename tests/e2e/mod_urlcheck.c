/* Refuses URLs that end in "hidden.txt": with -DBY_HOOK for every request, else where "Require url-not-hidden" stands.
 * Neither says AP_AUTH_INTERNAL_PER_CONF: the answer depends on the URL, and httpd asks for redirects and subrequests, too. */

#include "httpd.h"
#include "http_config.h"
#include "http_core.h"
#include "http_request.h"
#include "ap_provider.h"
#include "mod_auth.h"

static int is_hidden(request_rec *r)
{
    size_t length = strlen(r->uri), end = strlen("hidden.txt");

    return length >= end && !strcmp(r->uri + length - end, "hidden.txt");
}

#ifdef BY_HOOK

static int check(request_rec *r)
{
    return is_hidden(r) ? HTTP_FORBIDDEN : DECLINED;
}

static void register_hooks(apr_pool_t *p)
{
    ap_hook_access_checker(check, NULL, NULL, APR_HOOK_MIDDLE);
}

#else

static authz_status check(request_rec *r, const char *line, const void *parsed)
{
    return is_hidden(r) ? AUTHZ_DENIED : AUTHZ_GRANTED;
}

static const authz_provider provider = {check, NULL};

static void register_hooks(apr_pool_t *p)
{
    ap_register_provider(p, AUTHZ_PROVIDER_GROUP, "url-not-hidden", AUTHZ_PROVIDER_VERSION, &provider);
}

#endif

AP_DECLARE_MODULE(urlcheck) = {STANDARD20_MODULE_STUFF, NULL, NULL, NULL, NULL, NULL, register_hooks};

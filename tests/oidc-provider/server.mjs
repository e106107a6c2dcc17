// The npm package `oidc-provider`, a certified OpenID Provider, with one client: the gateway.
//
// Run by tests/it/oidc_provider.rs with one argument, JSON:
//   port          on loopback; the issuer is http://127.0.0.1:PORT
//   origin        the gateway's, whose /auth/callback and / are the redirect addresses
//   clientId, clientSecret
//   clientKey     a private key as PEM: the client proves itself with it, not with the secret
//   algorithm     of ID tokens: ES256 or RS256
//   tokenSeconds  how long an access token lives
//
// Whoever types a name into its sign-in page is that user. What it does, it prints, a line each.

import { createPublicKey, generateKeyPairSync, randomBytes } from 'node:crypto';
import Provider from 'oidc-provider';

const { port, origin, clientId, clientSecret, clientKey, algorithm, tokenSeconds } =
  JSON.parse(process.argv[2]);

const jwk = (key, use) => ({ ...key.export({ format: 'jwk' }), ...use });
const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey;
const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey;

const client = {
  client_id: clientId,
  client_secret: clientSecret,
  grant_types: ['authorization_code', 'refresh_token'],
  response_types: ['code'],
  redirect_uris: [`${origin}/auth/callback`],
  post_logout_redirect_uris: [`${origin}/`],
  id_token_signed_response_alg: algorithm,
};
if (clientKey) {
  delete client.client_secret;
  client.token_endpoint_auth_method = 'private_key_jwt';
  client.jwks = { keys: [jwk(createPublicKey(clientKey), { use: 'sig' })] };
}

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [client],
  jwks: { keys: [jwk(ec, { use: 'sig', alg: 'ES256' }), jwk(rsa, { use: 'sig', alg: 'RS256' })] },
  cookies: { keys: [randomBytes(32).toString('base64url')] },
  clockTolerance: 0, // one clock for both
  pkce: { required: () => true },
  rotateRefreshToken: true,
  ttl: { AccessToken: tokenSeconds, IdToken: 3600, RefreshToken: 86400, Session: 86400 },
  // Claims of the user are in userinfo, as the standard has it, not in the ID token.
  claims: { openid: ['sub'], profile: ['name'], email: ['email', 'email_verified'] },
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({ sub: id, name: `Zoë “${id}”`, email: `${id}@example.com`, email_verified: true }),
  }),
  features: {
    devInteractions: { enabled: true },
    revocation: { enabled: true },
    rpInitiatedLogout: { enabled: true },
  },
});

const say = (...words) => console.log('event:', ...words);
provider.on('grant.success', (ctx) => say('granted', ctx.oidc.params.grant_type));
provider.on('grant.error', (ctx, error) => say('refused', error.error, error.error_detail));
provider.on('grant.revoked', () => say('revoked'));
provider.on('revocation.error', (ctx, error) => say('not revoked', error.error));
provider.on('end_session.success', () => say('signed out'));
provider.on('server_error', (ctx, error) => say('broken', error.stack));

provider.listen(port, '127.0.0.1', () => say('listening'));

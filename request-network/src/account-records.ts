import type { SendAccount } from '@sallyport/shared';
import { sendRecords, type OutgoingRecord } from '@sallyport/transfer';

/** Sends what users of this network change of their own accounts. */
export const sendAccount: SendAccount = async (tx, { user, credential }, now) => {
  const records: OutgoingRecord[] = [];
  if (user) {
    const { id, profile_version, display_name, email, language, notices } = user;
    const data = { profile_version, display_name, email, language, notices };
    records.push({ type: 'account.profile', id, data });
  }
  if (credential) {
    const { user_id: id, ...data } = credential;
    records.push({ type: 'account.credential', id, data });
  }
  await sendRecords(tx, 'accounts', records, now);
};

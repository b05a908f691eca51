import java.net.Socket;
import java.security.Security;

import org.bouncycastle.est.jcajce.ChannelBindingProvider;
import org.bouncycastle.est.jcajce.JsseESTServiceBuilder;
import org.bouncycastle.jsse.BCSSLSocket;
import org.bouncycastle.jsse.provider.BouncyCastleJsseProvider;

/**
 * BcEst on BouncyCastle's own TLS, which tells the channel binding that linked proof of possession needs.
 */
public class BcLinkedEst extends BcEst
{
    /** What linked the request before, on a connection of its own. */
    private byte[] before;

    BcLinkedEst(String[] arguments) throws Exception
    {
        super(arguments);
    }

    public static void main(String[] arguments) throws Exception
    {
        Security.addProvider(new BouncyCastleJsseProvider());
        new BcLinkedEst(arguments).readAndPerform();
    }

    void link(JsseESTServiceBuilder builder, String kind) throws Exception
    {
        builder.withProvider("BCJSSE");
        builder.withChannelBindingProvider(new ChannelBindingProvider()
        {
            public boolean canAccessChannelBinding(Socket socket)
            {
                return socket instanceof BCSSLSocket;
            }

            /** Of the kind that the scenario names, whatever kind ESTService asks for. */
            public byte[] getChannelBinding(Socket socket, String asked)
            {
                if (!kind.equals("replayed"))
                {
                    before = ((BCSSLSocket) socket).getConnection().getChannelBinding(kind);
                }
                return before;
            }
        });
    }
}

import java.io.BufferedReader;
import java.io.FileReader;
import java.io.FileWriter;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.KeyStore;
import java.security.PrivateKey;
import java.security.Security;
import java.security.cert.Certificate;
import java.security.cert.TrustAnchor;
import java.security.cert.X509Certificate;
import java.security.spec.ECGenParameterSpec;
import java.util.Collection;
import java.util.HashMap;
import java.util.Map;
import java.util.Set;
import java.util.stream.Stream;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLSession;
import javax.security.auth.x500.X500Principal;

import org.bouncycastle.asn1.ASN1ObjectIdentifier;
import org.bouncycastle.asn1.DERSequence;
import org.bouncycastle.asn1.pkcs.PKCSObjectIdentifiers;
import org.bouncycastle.asn1.pkcs.PrivateKeyInfo;
import org.bouncycastle.asn1.x500.X500Name;
import org.bouncycastle.asn1.x509.Extension;
import org.bouncycastle.asn1.x509.ExtensionsGenerator;
import org.bouncycastle.asn1.x509.GeneralName;
import org.bouncycastle.asn1.x509.GeneralNames;
import org.bouncycastle.cert.X509CertificateHolder;
import org.bouncycastle.cert.jcajce.JcaX509CertificateConverter;
import org.bouncycastle.est.CSRRequestResponse;
import org.bouncycastle.est.ESTAuth;
import org.bouncycastle.est.ESTException;
import org.bouncycastle.est.ESTService;
import org.bouncycastle.est.EnrollmentResponse;
import org.bouncycastle.est.jcajce.JcaHttpAuthBuilder;
import org.bouncycastle.est.jcajce.JcaJceUtils;
import org.bouncycastle.est.jcajce.JsseDefaultHostnameAuthorizer;
import org.bouncycastle.est.jcajce.JsseESTServiceBuilder;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.openssl.PEMParser;
import org.bouncycastle.openssl.jcajce.JcaPEMKeyConverter;
import org.bouncycastle.openssl.jcajce.JcaPEMWriter;
import org.bouncycastle.operator.ContentSigner;
import org.bouncycastle.operator.jcajce.JcaContentSignerBuilder;
import org.bouncycastle.pkcs.PKCS10CertificationRequestBuilder;
import org.bouncycastle.pkcs.jcajce.JcaPKCS10CertificationRequestBuilder;
import org.bouncycastle.util.io.pem.PemObject;

/**
 * BouncyCastle's EST client, told what to do line by line on standard input; README.md says how.
 */
public class BcEst
{
    private static final char[] NO_PASSWORD = new char[0];

    /** RFC 6402, section 2.8. */
    private static final ASN1ObjectIdentifier CHANGE_SUBJECT_NAME = new ASN1ObjectIdentifier("1.3.6.1.5.5.7.7.36");

    private final String server;
    private final X509Certificate anchor;
    private final Path folder;
    private String protocol = "";

    BcEst(String[] arguments) throws Exception
    {
        server = arguments[0];
        anchor = certificate(Path.of(arguments[1]));
        folder = Path.of(arguments[2]);
    }

    public static void main(String[] arguments) throws Exception
    {
        new BcEst(arguments).readAndPerform();
    }

    void readAndPerform() throws Exception
    {
        Security.addProvider(new BouncyCastleProvider());
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine())
        {
            Map<String, String> words = new HashMap<>();
            for (String word : line.split(" "))
            {
                int equals = word.indexOf('=');
                words.put(word.substring(0, equals), word.substring(equals + 1));
            }
            System.out.println(words.get("name") + "\t" + outcome(words));
        }
    }

    private String outcome(Map<String, String> words)
    {
        protocol = "";
        try
        {
            perform(words);
            return "ok\t" + protocol;
        }
        catch (ESTException error)
        {
            return "status " + error.getStatusCode() + "\t" + protocol + "\t" + oneLine(error);
        }
        catch (Exception error)
        {
            return "failed\t" + protocol + "\t" + oneLine(error);
        }
    }

    private static String oneLine(Exception error)
    {
        return (error + (error.getCause() == null ? "" : " because " + error.getCause())).replaceAll("\\s+", " ");
    }

    private void perform(Map<String, String> words) throws Exception
    {
        ESTService service = service(words);
        if (words.get("do").equals("cacerts"))
        {
            write(words.get("name") + ".pem", service.getCACerts().getCertificateStore().getMatches(null));
            return;
        }
        if (words.get("do").equals("csrattrs"))
        {
            Files.writeString(folder.resolve(words.get("name") + ".txt"), asked(service).toString());
            return;
        }
        KeyPair keys = newKeys(words.getOrDefault("key-type", "ec"));
        write(words.get("name") + ".key", Set.of(new PemObject("PRIVATE KEY", keys.getPrivate().getEncoded())));
        PKCS10CertificationRequestBuilder request =
            new JcaPKCS10CertificationRequestBuilder(new X500Principal(words.get("subject")), keys.getPublic());
        if (words.containsKey("dns"))
        {
            ExtensionsGenerator extensions = new ExtensionsGenerator();
            GeneralName[] names = Stream.of(words.get("dns").split(","))
                .map(name -> new GeneralName(GeneralName.dNSName, name)).toArray(GeneralName[]::new);
            extensions.addExtension(Extension.subjectAlternativeName, false, new GeneralNames(names));
            request.addAttribute(PKCSObjectIdentifiers.pkcs_9_at_extensionRequest, extensions.generate());
        }
        if (words.containsKey("rename"))
        {
            request.addAttribute(CHANGE_SUBJECT_NAME, new DERSequence(new X500Name(words.get("rename"))));
        }
        String algorithm = keys.getPrivate().getAlgorithm().equals("RSA") ? "SHA256withRSA" : "SHA256withECDSA";
        ContentSigner signer = new JcaContentSignerBuilder(algorithm).build(keys.getPrivate());
        ESTAuth auth = null;
        if (words.containsKey("user"))
        {
            auth = new JcaHttpAuthBuilder(words.get("user"), words.get("password").toCharArray())
                .setProvider("BC").build();
        }
        boolean again = words.get("do").equals("reenroll");
        boolean link = words.containsKey("link") &&
            (!words.containsKey("csrattrs") || asked(service).contains(PKCSObjectIdentifiers.pkcs_9_at_challengePassword));
        EnrollmentResponse given;
        if (words.get("do").equals("serverkeygen"))
        {
            given = service.simpleEnrollWithServersideCreation(request.build(signer), auth);
        }
        else
        {
            given = link
                ? service.simpleEnrollPoP(again, request, signer, auth)
                : service.simpleEnroll(again, request.build(signer), auth);
        }
        if (!given.isCompleted())
        {
            throw new IllegalStateException("to be asked again after " + given.getNotBefore());
        }
        if (words.get("do").equals("serverkeygen"))
        {
            byte[] generated = given.getPrivateKeyInfo().getEncoded();
            write(words.get("name") + ".key", Set.of(new PemObject("PRIVATE KEY", generated)));
        }
        write(words.get("name") + ".pem", given.getStore().getMatches(null));
    }

    /** What the server's csrattrs names. */
    private static Collection<ASN1ObjectIdentifier> asked(ESTService service) throws Exception
    {
        CSRRequestResponse told = service.getCSRAttributes();
        return told.hasAttributesResponse() ? told.getAttributesResponse().getRequirements() : Set.of();
    }

    private ESTService service(Map<String, String> words) throws Exception
    {
        JsseESTServiceBuilder builder = new JsseESTServiceBuilder(
            server, JcaJceUtils.getCertPathTrustManager(Set.of(new TrustAnchor(anchor, null)), null));
        JsseDefaultHostnameAuthorizer names = new JsseDefaultHostnameAuthorizer(Set.of());
        builder.withHostNameAuthorizer((String host, SSLSession session) ->
        {
            protocol = session.getProtocol();
            return names.verified(host, session);
        });
        builder.withTimeout(20000);
        builder.withTLSVersion(words.getOrDefault("tls", "TLS"));
        if (words.containsKey("label"))
        {
            builder.withLabel(words.get("label"));
        }
        if (words.containsKey("link"))
        {
            link(builder, words.get("link"));
        }
        if (words.containsKey("cert"))
        {
            KeyStore store = KeyStore.getInstance("PKCS12");
            store.load(null, null);
            Certificate[] chain = {certificate(Path.of(words.get("cert")))};
            store.setKeyEntry("client", privateKey(Path.of(words.get("key"))), NO_PASSWORD, chain);
            KeyManagerFactory managers = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
            managers.init(store, NO_PASSWORD);
            builder.withKeyManagers(managers.getKeyManagers());
        }
        return builder.build();
    }

    /** Make services that can link a request to its TLS connection by a binding of that kind. */
    void link(JsseESTServiceBuilder builder, String kind) throws Exception
    {
        throw new UnsupportedOperationException("linking is BcLinkedEst's");
    }

    private static KeyPair newKeys(String type) throws Exception
    {
        KeyPairGenerator generator = KeyPairGenerator.getInstance(type.equals("ec") ? "EC" : "RSA");
        if (type.equals("ec"))
        {
            generator.initialize(new ECGenParameterSpec("secp256r1"));
        }
        else
        {
            generator.initialize(Integer.parseInt(type.substring("rsa-".length())));
        }
        return generator.generateKeyPair();
    }

    private static X509Certificate certificate(Path path) throws Exception
    {
        try (PEMParser parser = new PEMParser(new FileReader(path.toFile())))
        {
            return new JcaX509CertificateConverter().getCertificate((X509CertificateHolder) parser.readObject());
        }
    }

    private static PrivateKey privateKey(Path path) throws Exception
    {
        try (PEMParser parser = new PEMParser(new FileReader(path.toFile())))
        {
            return new JcaPEMKeyConverter().getPrivateKey((PrivateKeyInfo) parser.readObject());
        }
    }

    private void write(String name, Collection<?> objects) throws Exception
    {
        try (JcaPEMWriter file = new JcaPEMWriter(new FileWriter(folder.resolve(name).toFile())))
        {
            for (Object one : objects)
            {
                file.writeObject(one);
            }
        }
    }
}
